"""The heads on the latents: critic ensemble and vector field; and the whole set of networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.impala import ENCODERS
from encoders.mlp import MLP
from fql.config import AgentConfig

NUM_CRITICS = 2
Params = dict[str, Any]


class Critic(nn.Module):
    """An ensemble of Q functions of latents and actions."""

    hidden_dims: Sequence[int]
    layer_norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> jax.Array:
        """(b, d), (b, a) float -> (NUM_CRITICS, b) float."""
        ensemble = nn.vmap(
            MLP,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=None,
            out_axes=0,
            axis_size=NUM_CRITICS,
        )
        features = (*self.hidden_dims, 1)
        mlp = ensemble(features, layer_norm=self.layer_norm, dtype=self.dtype, name='mlp')
        return mlp(latents, actions).squeeze(-1)


class VectorField(nn.Module):
    """A vector in action space: the flow's velocity, or (without time) the one-step policy."""

    hidden_dims: Sequence[int]
    action_dim: int
    layer_norm: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latents: jax.Array, actions: jax.Array, time: jax.Array | None = None
    ) -> jax.Array:
        """(b, d), (b, a), (b, 1) or None -> (b, a), all float."""
        inputs = [latents, actions] if time is None else [latents, actions, time]
        features = (*self.hidden_dims, self.action_dim)
        return MLP(features, layer_norm=self.layer_norm, dtype=self.dtype, name='mlp')(*inputs)


@dataclass(frozen=True)
class Networks:
    """The modules of an agent; their parameters are given to each call.

    Attributes:
        encoder: images to latents; None where observations are vectors, which are then the
            latents themselves.
        critic: (latents, actions) -> (NUM_CRITICS, b).
        bc_flow: (latents, x_t, t) -> velocity.
        one_step_policy: (latents, noise) -> action.
    """

    encoder: nn.Module | None
    critic: Critic
    bc_flow: VectorField
    one_step_policy: VectorField

    def encode(self, encoder_params: Params, observations: jax.Array) -> jax.Array:
        """Latents (b, d) of images (b, h, w, c)."""
        assert self.encoder is not None
        return _apply(self.encoder, encoder_params, observations)

    def qs(self, params: Params, latents: jax.Array, actions: jax.Array) -> jax.Array:
        """Q_k(o, a), (NUM_CRITICS, b)."""
        return _apply(self.critic, params['critic'], latents, actions)

    def velocity(
        self, params: Params, latents: jax.Array, x: jax.Array, time: jax.Array
    ) -> jax.Array:
        """v(o, x_t, t), (b, a)."""
        return _apply(self.bc_flow, params['bc_flow'], latents, x, time)

    def one_step(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """mu(o, z), (b, a), not clipped."""
        return _apply(self.one_step_policy, params['one_step_policy'], latents, noise)


def _apply(module: nn.Module, params: Params, *inputs: jax.Array) -> jax.Array:
    return cast(jax.Array, module.apply({'params': params}, *inputs))


def make_networks(config: AgentConfig, action_dim: int, images: bool) -> Networks:
    """The networks of a configuration, for image or vector observations."""
    dtype = jnp.dtype(config.precision)
    actor = VectorField(config.hidden_dims, action_dim, config.actor_layer_norm, dtype)
    return Networks(
        encoder=ENCODERS[config.encoder].clone(dtype=dtype) if images else None,
        critic=Critic(config.hidden_dims, config.critic_layer_norm, dtype),
        bc_flow=actor,
        one_step_policy=actor,
    )


def encoder_names(config: AgentConfig) -> tuple[str, ...]:
    """The keys of `params['encoders']` for image observations."""
    if config.encoder_sharing == 'shared':
        return ('shared',)
    return ('critic', 'bc_flow', 'one_step_policy')


def encoder_of(config: AgentConfig, network: str) -> str:
    """The key, in `params['encoders']`, of the encoder that a network reads."""
    return 'shared' if config.encoder_sharing == 'shared' else network


def init_params(
    key: jax.Array,
    networks: Networks,
    config: AgentConfig,
    observations: jax.Array,
    action_dim: int,
) -> Params:
    """Fresh parameters.

    Args:
        key: a typed PRNG key.
        observations: an example, (b, h, w, c) uint8 or (b, d) float32; its values are not used.
        action_dim: size of an action.

    Returns:
        `{'encoders': {name: ...}, 'critic': ..., 'bc_flow': ..., 'one_step_policy': ...}`, all
        float32; `encoders` is empty where observations are vectors.
    """
    encoder_key, critic_key, bc_flow_key, policy_key = jax.random.split(key, 4)
    observations = observations[:1]
    encoders: Params = {}
    latents = observations
    if networks.encoder is not None:
        for i, name in enumerate(encoder_names(config)):
            latents, variables = networks.encoder.init_with_output(
                jax.random.fold_in(encoder_key, i), observations
            )
            encoders[name] = variables['params']
    actions = jnp.zeros((1, action_dim))
    time = jnp.zeros((1, 1))
    return {
        'encoders': encoders,
        'critic': networks.critic.init(critic_key, latents, actions)['params'],
        'bc_flow': networks.bc_flow.init(bc_flow_key, latents, actions, time)['params'],
        'one_step_policy': networks.one_step_policy.init(policy_key, latents, actions)['params'],
    }
