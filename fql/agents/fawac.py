"""FAWAC: flow matching weighted by the advantage of the data's action over the flow's own.

Differs from `fbrac.py`: no gradient goes through the flow's integration. The critic reaches the
policy only by the weights of flow matching, which have no gradient.

Source: the baseline 'flow advantage-weighted actor-critic' of Park, Li, Levine, 'Flow Q-Learning',
ICML 2025, arXiv 2502.02538, after Nair et al., 'AWAC', 2020, arXiv 2006.09359. No code of it is
public; this is our reading of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import FAWACConfig
from fql.agents.objectives import (
    FlowDraws,
    aggregate,
    flow_actions,
    flow_errors,
    q_metrics,
    sample_flow_draws,
    velocity,
)
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, Head, VectorField

MAX_WEIGHT = 100.0
"""Largest weight of a sample."""


@dataclass(frozen=True)
class FAWAC(Agent):
    """Critics and a velocity field."""

    config: FAWACConfig
    policies = ('flow',)

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        return {
            'critic': Head(Critic(dims, config.critic_layer_norm, dtype), (size,)),
            'bc_flow': Head(VectorField(dims, size, config.actor_layer_norm, dtype), (size, 1)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """Weighted flow matching is regression to the data's actions."""
        return {'critic': True, 'bc_flow': self.config.bc_flow_trains_encoder}

    def sample_draws(self, key: jax.Array, batch: Batch) -> FlowDraws:
        """`policy_noise` is for the flow's own action in the advantage."""
        return sample_flow_draws(key, batch.actions.shape)

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: FlowDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + weighted BC-flow loss."""
        del step
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'bc_flow')
        )

        # As in FQL, with a' = Flow(o', z').
        next_actions = self.flow(params, next_latents['bc_flow'], draws.next_action_noise)
        next_qs = self.qs(target_params, next_latents['critic'], next_actions)
        next_q = aggregate(next_qs, config.q_agg)
        target = stop(batch.rewards + config.discount * batch.masks * next_q)
        qs = self.qs(params, latents['critic'], batch.actions)
        critic_loss = jnp.mean((qs - target) ** 2)

        # mean(w (v(o, x_t, t) - (a - z))^2), w = min(exp(beta * (Q(o, a) - Q(o, a_flow))), 100).
        fixed, fixed_latents = stop((params, latents))
        own_actions = self.flow(fixed, fixed_latents['bc_flow'], draws.policy_noise)
        own_q = self.qs(fixed, fixed_latents['critic'], own_actions).mean(axis=0)
        advantage = stop(qs.mean(axis=0) - own_q)
        weight = jnp.minimum(jnp.exp(config.beta * advantage), MAX_WEIGHT)
        errors = flow_errors(
            velocity(self, params, latents['bc_flow']),
            batch.actions,
            draws.flow_noise,
            draws.flow_time,
        )
        actor_loss = jnp.mean(weight[:, None] * errors)

        return critic_loss + actor_loss, {
            **q_metrics(critic_loss, qs),
            'actor/loss': actor_loss,
            'actor/bc_flow_loss': jnp.mean(errors),
            'actor/advantage_mean': advantage.mean(),
            'actor/weight_mean': weight.mean(),
        }

    def flow(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """The policy's actions (b, a) from this noise."""
        return flow_actions(velocity(self, params, latents), noise, self.config.flow_steps)

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`flow`: a sample of the flow."""
        del policy
        latents = self.encoding.encode(params, 'bc_flow', observations)
        return self.flow(params, latents, noise)[:, None]
