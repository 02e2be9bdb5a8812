"""One gradient step: the training state, and the pure functions that make and change it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fql.agents.configs import EncoderConfig

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


class Learnable(Protocol):
    """The interface of an agent, or of a pretraining objective, for the learner."""

    averages_after_step: ClassVar[bool]
    """Whether the target averages the parameters as they are after the step, or before it."""

    @property
    def frozen(self) -> frozenset[str]:
        """Top-level names in the parameters that no update changes."""

    def init_params(self, key: jax.Array) -> Params:
        """Fresh parameters."""

    def sample_draws(self, key: jax.Array, batch: Any) -> Any:
        """The random numbers of an update, from its key."""

    def loss(
        self, params: Params, target_params: Params, batch: Any, draws: Any, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The loss to be minimised, and metrics."""

    def averaged(self, params: Params) -> Params:
        """The part of the parameters that the target averages."""

    def target_rate(self, step: jax.Array) -> jax.Array | float:
        """Weight of the new parameters in that average."""


@struct.dataclass
class TrainState:
    """State of training after `step` updates.

    Attributes:
        step: () int32, the number of updates made. Update n is the one made from step n.
        params: online parameters.
        target_params: the average of `averaged(params)`.
        opt_state: of the optimiser, for the parameters that are trained.
        key: () typed PRNG key of the run; update n draws from `fold_in(key, n)`.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: Any
    key: jax.Array


@dataclass(frozen=True)
class Learner:
    """An agent and its optimiser."""

    agent: Learnable
    optimizer: optax.GradientTransformation

    def init(self, seed: int, encoder: Params | None = None) -> TrainState:
        """The state before the first update; the target starts as a copy.

        Args:
            encoder: the parameters that every encoder starts with, in place of fresh ones.
        """
        init_key, key = split_seed(seed)
        params = self.agent.init_params(init_key)
        if encoder is not None:
            copies = {name: jax.tree.map(jnp.copy, encoder) for name in params['encoders']}
            params['encoders'] = copies
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # Copies, so that a donated state never holds one buffer twice.
            target_params=jax.tree.map(jnp.copy, self.agent.averaged(params)),
            opt_state=self.optimizer.init(self.trained(params)),
            key=key,
        )

    def trained(self, params: Params) -> Params:
        """The part of the parameters that is differentiated and optimised."""
        return {name: tree for name, tree in params.items() if name not in self.agent.frozen}

    def gradient(self, state: TrainState, batch: Any, draws: Any) -> tuple[Params, Metrics]:
        """Gradient of the loss in the `trained` parameters, and the metrics."""

        def loss(trained: Params) -> tuple[jax.Array, Metrics]:
            params = {**state.params, **trained}
            loss, metrics = self.agent.loss(params, state.target_params, batch, draws, state.step)
            return loss, {'loss': loss, **metrics}

        return jax.grad(loss, has_aux=True)(self.trained(state.params))

    def update(
        self, state: TrainState, batch: Any, draws: Any = None
    ) -> tuple[TrainState, Metrics]:
        """One gradient step on a batch, with the draws of `fold_in(state.key, state.step)`.

        Args:
            draws: the random numbers to use instead.

        Returns:
            The next state, and scalar metrics of the parameters before the step.
        """
        if draws is None:
            draws = self.draws(state, batch)
        grads, metrics = self.gradient(state, batch, draws)
        trained = self.trained(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        params = {**state.params, **optax.apply_updates(trained, updates)}
        followed = self.agent.averaged(params if self.agent.averages_after_step else state.params)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            target_params=optax.incremental_update(
                followed, state.target_params, self.agent.target_rate(state.step)
            ),
            opt_state=opt_state,
        )
        return new_state, {**metrics, 'update/grad_norm': optax.tree.norm(grads)}

    def draws(self, state: TrainState, batch: Any) -> Any:
        """The random numbers of the next update."""
        return self.agent.sample_draws(jax.random.fold_in(state.key, state.step), batch)

    def validate(self, state: TrainState, batch: Any) -> Metrics:
        """The metrics of a batch that is not trained on, each `validation/NAME`."""
        loss, metrics = self.agent.loss(
            state.params, state.target_params, batch, self.draws(state, batch), state.step
        )
        return {f'validation/{name}': value for name, value in {'loss': loss, **metrics}.items()}


def make_optimizer(lr: float, encoder: EncoderConfig) -> optax.GradientTransformation:
    """One Adam for all trained parameters; when fine-tuning, another one for the encoders.

    The encoders' Adam has its own learning rate. Before update `encoder.unfreeze_step` it does
    nothing, moments included.
    """
    if encoder.mode != 'finetune':
        return optax.adam(lr)
    return optax.partition(
        {
            'heads': optax.adam(lr),
            'encoders': optax.conditionally_mask(
                optax.adam(lr * encoder.lr_multiplier),
                lambda updates: updates >= encoder.unfreeze_step,
            ),
        },
        # The name of each part's optimiser, which holds for all leaves below it.
        lambda params: {name: 'encoders' if name == 'encoders' else 'heads' for name in params},
    )


def scaled_encoders(
    optimizer: optax.GradientTransformation, multiplier: float
) -> optax.GradientTransformation:
    """The optimiser with the changes of the encoders' parameters multiplied; its state is the same.

    Args:
        multiplier: the factor.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        scaled = {
            name: jax.tree.map(lambda x: multiplier * x, tree) if name == 'encoders' else tree
            for name, tree in updates.items()
        }
        return scaled, state

    return optax.GradientTransformation(optimizer.init, update)


def split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial parameters and of the updates."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return init_key, key


def count_parameters(params: Mapping[str, Any]) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
