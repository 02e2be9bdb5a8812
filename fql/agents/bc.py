"""BC: behaviour cloning by flow matching; no rewards and no critic.

Differs from `fql.py`: only its BC-flow loss is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import BCConfig
from fql.agents.objectives import flow_actions, flow_errors, sample_path_draws, velocity
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Head, VectorField


@dataclass(frozen=True)
class BC(Agent):
    """A velocity field."""

    config: BCConfig
    policies = ('flow',)
    averaged_heads = ()

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dtype = jnp.dtype(config.precision)
        flow = VectorField(config.hidden_dims, size, config.actor_layer_norm, dtype)
        return {'bc_flow': Head(flow, (size, 1))}

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """There is no other loss."""
        return {'bc_flow': True}

    def sample_draws(self, key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """`flow_noise` (b, a) normal and `flow_time` (b, 1) uniform."""
        return sample_path_draws(key, batch.actions.shape)

    def loss(
        self,
        params: Params,
        target_params: Params,
        batch: Batch,
        draws: tuple[jax.Array, jax.Array],
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """`mean((v(o, x_t, t) - (a - z))^2)`."""
        del target_params, step
        self.check(batch)
        latents = self.encoding.latents(params, batch.observations)['bc_flow']
        errors = flow_errors(velocity(self, params, latents), batch.actions, *draws)
        loss = jnp.mean(errors)
        return loss, {'actor/bc_flow_loss': loss}

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`flow`: a sample of the flow."""
        del policy
        latents = self.encoding.encode(params, 'bc_flow', observations)
        actions = flow_actions(velocity(self, params, latents), noise, self.config.flow_steps)
        return actions[:, None]
