"""A learner's functions, compiled for the devices of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fql.devices import abstract_on, compiler_options, run_once_options, state_shardings
from fql.learner import Learner, Metrics, Params, TrainState

Arrays = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Sequence[Arrays]], tuple[TrainState, Metrics]]
Prepare = Callable[[Arrays, jax.Array, jax.Array], Any]
"""(the loader's arrays, the run's key, the update) -> the batch that the loss reads."""


def initial_state(
    learner: Learner,
    seed: int,
    mesh: Mesh,
    shard_params: bool = False,
    encoder: Params | None = None,
) -> TrainState:
    """The state before the first update, on the devices of `mesh`.

    Args:
        encoder: NumPy arrays, the parameters that the encoder starts with if not fresh ones.
    """
    init = jax.jit(
        lambda encoder: learner.init(seed, encoder),
        out_shardings=state_shardings(_shapes(learner), mesh, shard_params),
        compiler_options=run_once_options(),
    )
    return init(encoder)


def abstract_state(learner: Learner, mesh: Mesh, shard_params: bool = False) -> TrainState:
    """Shapes, dtypes and shardings of the state, to be restored onto the devices of `mesh`."""
    return abstract_on(_shapes(learner), mesh, shard_params)


def _shapes(learner: Learner) -> TrainState:
    return jax.eval_shape(lambda: learner.init(0))


def make_train_step(learner: Learner, prepare: Prepare, abstract: TrainState) -> TrainStep:
    """The jitted function (state, batches) -> (state, metrics): one update for each batch.

    Several batches are several updates in one call (`lax.scan`), which saves the cost of starting
    each; how many a call makes does not change a bit of the state. The metrics are
    (len(batches),) arrays. The state given is used up (donated).

    Args:
        abstract: the state's shapes and shardings, which an update keeps.
    """

    def one_update(state: TrainState, arrays: Arrays) -> tuple[TrainState, Metrics]:
        return learner.update(state, prepare(arrays, state.key, state.step))

    def stack(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves)

    def train_step(state: TrainState, batches: Sequence[Arrays]) -> tuple[TrainState, Metrics]:
        if len(batches) == 1 and jax.default_backend() == 'cpu':
            # Without the loop, in which convolutions run on one thread.
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


def make_validation(
    validate: Callable[[TrainState, Arrays], Metrics],
) -> Callable[[TrainState, Arrays], Metrics]:
    """The jitted metrics of the loader's arrays, without an update."""
    return jax.jit(validate, compiler_options=compiler_options())
