"""The jitted functions of a run, from the loader's arrays to the next state and metrics."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fql.agent import abstract_state, agent_networks
from fql.augmentation import augment_frames
from fql.batch import batch_from_frames
from fql.devices import compiler_options
from fql.losses import Metrics
from fql.train_state import TrainState
from fql.training.run_folder import RunSpec
from fql.update import update, validation_metrics

LOADED_FIELDS = ('frames', 'actions', 'rewards', 'masks')
"""What an update reads of the loader's arrays."""

Arrays = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Sequence[Arrays]], tuple[TrainState, Metrics]]


def make_train_step(spec: RunSpec, mesh: Mesh) -> TrainStep:
    """The jitted function (state, batches) -> (state, metrics): one update for each batch.

    Several batches are several updates in one call (`lax.scan`), which saves the cost of starting
    each; how many a call makes does not change a bit of the state. The metrics are
    (len(batches),) arrays. The state given is used up (donated).

    Args:
        mesh: the devices that state and batches are on.
    """
    networks = agent_networks(spec)

    def one_update(state: TrainState, arrays: Arrays) -> tuple[TrainState, Metrics]:
        frames = augment_frames(arrays['frames'], spec.config.augmentation, state.key, state.step)
        batch = batch_from_frames({**arrays, 'frames': frames})
        return update(networks, spec.config.agent, state, batch)

    return scan_updates(one_update, abstract_state(spec, mesh))


def runs_best_alone() -> bool:
    """Whether a call should make one update only, as on CPUs, where convolutions inside a loop run
    on one thread.
    """
    return jax.default_backend() == 'cpu'


def scan_updates(
    one_update: Callable[[TrainState, Arrays], tuple[TrainState, Metrics]], abstract: TrainState
) -> TrainStep:
    """The jitted `TrainStep` of an update of one batch.

    Args:
        abstract: the state's shapes and shardings, which an update keeps.
    """

    def stack(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves)

    def train_step(state: TrainState, batches: Sequence[Arrays]) -> tuple[TrainState, Metrics]:
        if len(batches) == 1 and runs_best_alone():
            state, metrics = one_update(state, batches[0])
            return state, jax.tree.map(stack, metrics)
        return jax.lax.scan(one_update, state, jax.tree.map(stack, *batches))

    # Left to XLA, a state spread over the devices would be spread in another way by every update.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, abstract.step.sharding),
        compiler_options=compiler_options(),
    )


def make_validation(spec: RunSpec) -> Callable[[TrainState, Arrays], Metrics]:
    """The jitted metrics of the loader's arrays, without an update."""
    networks = agent_networks(spec)

    def validate(state: TrainState, arrays: Arrays) -> Metrics:
        return validation_metrics(networks, spec.config.agent, state, batch_from_frames(arrays))

    return jax.jit(validate, compiler_options=compiler_options())
