"""The interface of a pretraining objective: an encoder, heads, a loss on trajectory windows.

`params` is `{'encoder': ..., 'heads': {name: ...}}`; `target_params` holds the averaged part of the
same tree for the objectives with a momentum target, and is empty for the others. No loss sends a
gradient into `target_params`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from encoders.cameras import Shapes, blank_observations, latent_size
from encoders.mlp import KERNEL_INIT, MLP

CODE_SIZE = 128
"""Width of the codes in temporal contrast and self-prediction, and of a patch's code."""

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


class Windows(NamedTuple):
    """Parts of trajectories, from t to t + k.

    Attributes:
        observations: the stack at t, (b, h, w, c), uint8 or float32 in [0, 1], oldest first; or
            several such arrays, and (b, d) float32, by name.
        later_observations: the same at t + k.
        actions: (b, horizon, a) float32: a_t .. a_{t+k-1}, then zeros.
        offsets: (b,) int32: k, in 1..horizon.
    """

    observations: Any
    later_observations: Any
    actions: jax.Array
    offsets: jax.Array


@dataclass(frozen=True)
class ObjectiveHead:
    """A module that takes vectors (b, inputs), and their width."""

    module: nn.Module
    inputs: int


@dataclass(frozen=True)
class Objective(ABC):
    """A pretraining objective.

    Attributes:
        encoder: observations to latents.
        observation_shape: of a stack, (h, w, c); of several arrays, by name.
        action_dim: size of an action.
        horizon: largest k of a window.
        hidden_dims: widths of the hidden layers of each head.
        tau: rate at which the momentum target follows.
    """

    encoder: nn.Module
    observation_shape: Shapes
    action_dim: int
    horizon: int
    hidden_dims: Sequence[int]
    tau: float = 0.01

    averaged_heads: ClassVar[tuple[str, ...]] = ()
    """Heads of the momentum target; if there are any, it averages the encoder too."""
    averages_after_step: ClassVar[bool] = True
    """The momentum target averages the parameters as they are after the step."""
    frozen: ClassVar[frozenset[str]] = frozenset()
    """Top-level names in `params` that no update changes."""

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """The networks after the encoder, in the order in which they get their random keys."""

    @abstractmethod
    def loss(
        self,
        params: Params,
        target_params: Params,
        windows: Windows,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, () float32, and metrics; pure."""

    @property
    def latent_size(self) -> int:
        """Width of the encoder's latents."""
        return latent_size(self.encoder, self.observation_shape)

    def mlp(self, *features: int) -> MLP:
        """An MLP with the hidden layers of a head."""
        return MLP((*self.hidden_dims, *features))

    def init_params(self, key: jax.Array) -> Params:
        """Fresh parameters, all float32, from a typed PRNG key."""
        encoder_key, heads_key = jax.random.split(key)
        observations = blank_observations(self.observation_shape)
        return {
            'encoder': self.encoder.init(encoder_key, observations)['params'],
            'heads': {
                name: head.module.init(
                    jax.random.fold_in(heads_key, i), jnp.zeros((1, head.inputs))
                )['params']
                for i, (name, head) in enumerate(self.heads.items())
            },
        }

    def sample_draws(self, key: jax.Array, windows: Windows) -> jax.Array:
        """The key itself; a loss draws from it."""
        del windows
        return key

    def averaged(self, params: Params) -> Params:
        """The part of the parameters that the momentum target averages, if there is one."""
        if not self.averaged_heads:
            return {}
        heads = {name: params['heads'][name] for name in self.averaged_heads}
        return {'encoder': params['encoder'], 'heads': heads}

    def target_rate(self, step: jax.Array) -> float:
        """Weight of the new parameters in that average."""
        del step
        return self.tau

    def encode(self, params: Params, observations: Any) -> jax.Array:
        """Latents (b, d) of observations, see `Windows`."""
        return cast(jax.Array, self.encoder.apply({'params': params['encoder']}, observations))

    def head(self, params: Params, name: str, *inputs: jax.Array) -> jax.Array:
        """The output of a head for vectors (b, n), which are concatenated."""
        variables = {'params': params['heads'][name]}
        joined = jnp.concatenate(inputs, axis=-1)
        return cast(jax.Array, self.heads[name].module.apply(variables, joined))


def dense(features: int, use_bias: bool = True) -> nn.Dense:
    """A linear layer."""
    return nn.Dense(features, use_bias=use_bias, kernel_init=KERNEL_INIT)


def feature_std(latents: jax.Array) -> jax.Array:
    """Standard deviation over the batch, mean over the dimensions of latents (b, d)."""
    return jnp.mean(jnp.std(latents, axis=0))


def effective_rank(latents: jax.Array) -> jax.Array:
    """`exp(entropy of p)`, p the singular values of the centred latents (b, d) over their sum.

    From 1 (all on a line; 0/0 if all are equal) to min(b - 1, d). Source: Roy and Vetterli 2007,
    'The effective rank: a measure of effective dimensionality'.
    """
    values = jnp.linalg.svd(latents - latents.mean(axis=0), compute_uv=False)
    p = values / values.sum()
    return jnp.exp(jnp.sum(jax.scipy.special.entr(p)))


def feature_scale(latents: jax.Array) -> Metrics:
    """The metric that shows a collapse."""
    return {'features/std': feature_std(latents)}


def one_hot_offsets(windows: Windows) -> jax.Array:
    """(b, horizon) float: k of each window."""
    return jax.nn.one_hot(windows.offsets - 1, windows.actions.shape[1])
