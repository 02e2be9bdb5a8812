"""A learner's functions, compiled for the devices of a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fql.devices import abstract_on, compiler_options, run_once_options, state_shardings
from fql.learner import Learner, Metrics, Params, TrainState

Arrays = dict[str, jax.Array]
SHORT_UPDATES_PER_CALL = 20
"""Updates per call if an update has no convolutions: starting one takes as long as its work."""
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


def updates_per_call(asked: int, has_convolutions: bool) -> int:
    """How many updates one call of the compiled step makes.

    Args:
        asked: the number; 0 for the best one.
        has_convolutions: whether an update encodes images. Then a call on CPUs makes one update:
            inside a loop, convolutions run on one thread.
    """
    if has_convolutions:
        return 1 if jax.default_backend() == 'cpu' else max(asked, 1)
    return asked or SHORT_UPDATES_PER_CALL


@dataclass(frozen=True)
class TrainStep:
    """The compiled function (state, batches) -> (state, metrics): one update for each batch.

    Several batches are several updates in one call, which saves the cost of starting each. One
    program makes any number of updates up to `per_call`, so that the number does not change a bit
    of the state. The state given is donated.

    Attributes:
        jitted: (state, `per_call` batches, how many of them) -> (state, metrics (per_call,)).
        per_call: the most updates that a call makes.
    """

    jitted: Any
    per_call: int

    def __call__(self, state: TrainState, batches: Sequence[Arrays]) -> tuple[TrainState, Metrics]:
        """The state after the updates, and metrics, (len(batches),) arrays."""
        state, metrics = self.jitted(*self.arguments(state, batches))
        if len(batches) < self.per_call:
            metrics = {name: values[: len(batches)] for name, values in metrics.items()}
        return state, metrics

    def arguments(self, state: TrainState, batches: Sequence[Arrays]) -> tuple[Any, ...]:
        """The arguments of `jitted`; the last batch fills the unused places."""
        assert 1 <= len(batches) <= self.per_call
        filled = [*batches, *[batches[-1]] * (self.per_call - len(batches))]
        return state, filled, np.int32(len(batches))


def make_train_step(
    learner: Learner,
    prepare: Prepare,
    abstract: TrainState,
    asked: int = 0,
    has_convolutions: bool = True,
    at_most: int | None = None,
) -> TrainStep:
    """Compile the updates of a learner.

    Args:
        abstract: the state's shapes and shardings, which an update keeps.
        asked, has_convolutions: see `updates_per_call`.
        at_most: updates that are ever made in one call; None for no limit.
    """
    per_call = updates_per_call(asked, has_convolutions)
    per_call = per_call if at_most is None else min(per_call, at_most)

    def one_update(state: TrainState, arrays: Arrays) -> tuple[TrainState, Metrics]:
        return learner.update(state, prepare(arrays, state.key, state.step))

    def alone(
        state: TrainState, batches: Sequence[Arrays], count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        del count
        state, metrics = one_update(state, batches[0])
        return state, jax.tree.map(lambda value: value[None], metrics)

    def loop(
        state: TrainState, batches: Sequence[Arrays], count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        _, shapes = jax.eval_shape(one_update, state, batches[0])
        metrics = jax.tree.map(lambda value: jnp.zeros(per_call, value.dtype), shapes)

        def body(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = one_update(state, jax.tree.map(lambda leaf: leaf[i], stacked))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)

        return jax.lax.fori_loop(0, count, body, (state, metrics))

    # Left to XLA, every update would spread a state over the devices in another way.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # On CPUs, convolutions inside a loop run on one thread. Elsewhere the host may wait for every
    # turn of a loop, and then it does not run ahead of the device.
    is_alone = per_call == 1 and (has_convolutions or jax.default_backend() != 'cpu')
    jitted = jax.jit(
        alone if is_alone else loop,
        donate_argnums=0,
        out_shardings=(shardings, abstract.step.sharding),
        compiler_options=compiler_options(),
    )
    return TrainStep(jitted, per_call)
