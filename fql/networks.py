"""The heads on the latents: critics, value function, vector fields and Gaussian actors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.mlp import MLP

LOG_STD_RANGE = (-5.0, 2.0)
"""Of Gaussian actors' log standard deviation; outside, the gradient is zero."""


@dataclass(frozen=True)
class Head:
    """A network after the encoder.

    Attributes:
        module: (latents (b, d), *inputs (b, n)) -> output.
        inputs: widths of the inputs beside the latents.
    """

    module: nn.Module
    inputs: tuple[int, ...] = ()


class Critic(nn.Module):
    """An ensemble of Q functions of latents and actions."""

    hidden_dims: Sequence[int]
    layer_norm: bool
    dtype: DTypeLike = jnp.float32
    num_critics: int = 2

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Latents (b, d) and actions (b, a), float -> (num_critics, b) float32."""
        ensemble = nn.vmap(
            MLP,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=None,
            out_axes=0,
            axis_size=self.num_critics,
        )
        features = (*self.hidden_dims, 1)
        mlp = ensemble(features, layer_norm=self.layer_norm, dtype=self.dtype, name='mlp')
        return mlp(*inputs).squeeze(-1)


class Value(nn.Module):
    """A value function of latents."""

    hidden_dims: Sequence[int]
    layer_norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """(b, d) float -> (b,) float32."""
        features = (*self.hidden_dims, 1)
        mlp = MLP(features, layer_norm=self.layer_norm, dtype=self.dtype, name='mlp')
        return mlp(latents).squeeze(-1)


class VectorField(nn.Module):
    """A vector in action space: the flow's velocity, or (without time) the one-step policy."""

    hidden_dims: Sequence[int]
    action_dim: int
    layer_norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Latents (b, d), actions or noise (b, a) and perhaps time (b, 1), float -> (b, a)."""
        features = (*self.hidden_dims, self.action_dim)
        return MLP(features, layer_norm=self.layer_norm, dtype=self.dtype, name='mlp')(*inputs)


class GaussianActor(nn.Module):
    """Mean and logarithm of the standard deviation of a diagonal Gaussian.

    Attributes:
        std: 'constant' (1), 'free' (a parameter for each dimension), or 'state' (of the latents).
    """

    hidden_dims: Sequence[int]
    action_dim: int
    layer_norm: bool
    std: Literal['constant', 'free', 'state']
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(b, d) float -> mean (b, a) and log std (b, a), float32; the mean is not squashed."""
        mlp = MLP(
            self.hidden_dims,
            activate_final=True,
            layer_norm=self.layer_norm,
            dtype=self.dtype,
            name='mlp',
        )
        x = mlp(latents)
        small = nn.initializers.variance_scaling(0.01, 'fan_avg', 'uniform')
        mean = nn.Dense(self.action_dim, kernel_init=small, dtype=self.dtype, name='mean')(x)
        mean = mean.astype(jnp.float32)
        if self.std == 'constant':
            return mean, jnp.zeros_like(mean)
        if self.std == 'free':
            zeros = nn.initializers.zeros_init()
            log_std = self.param('log_stds', zeros, (self.action_dim,), jnp.float32)
        else:
            dense = nn.Dense(self.action_dim, kernel_init=small, dtype=self.dtype, name='log_std')
            log_std = dense(x).astype(jnp.float32)
        return mean, jnp.broadcast_to(jnp.clip(log_std, *LOG_STD_RANGE), mean.shape)
