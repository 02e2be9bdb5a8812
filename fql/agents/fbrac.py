"""FBRAC: a flow policy trained against the critic through all of its Euler steps.

Differs from `fql.py`: there is no one-step policy. The flow itself is the policy; the gradient of Q
goes back through every step of its integration, beside the BC-flow loss.

Source: the baseline 'flow behaviour-regularised actor-critic' of Park, Li, Levine, 'Flow
Q-Learning', ICML 2025, arXiv 2502.02538. No code of it is public; this is our reading of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import FBRACConfig
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


@dataclass(frozen=True)
class FBRAC(Agent):
    """Critics and a velocity field."""

    config: FBRACConfig
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
        """The BC-flow loss may train it; the Q term follows a moving critic and never does."""
        return {'critic': True, 'bc_flow': self.config.bc_flow_trains_encoder}

    def sample_draws(self, key: jax.Array, batch: Batch) -> FlowDraws:
        """`policy_noise` is for the Q term."""
        return sample_flow_draws(key, batch.actions.shape)

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: FlowDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + Q term + alpha * BC-flow loss."""
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

        bc_flow_loss = jnp.mean(
            flow_errors(
                velocity(self, params, latents['bc_flow']),
                batch.actions,
                draws.flow_noise,
                draws.flow_time,
            )
        )

        # -mean_k Q_k(o, Flow(o, z)), gradient into the flow through all Euler steps; a shared
        # encoder gets none of it; a separate encoder of the flow does.
        shared = self.encoding.shared
        flow_latents = stop(latents['bc_flow']) if shared else latents['bc_flow']
        actions = self.flow(params, flow_latents, draws.policy_noise)
        q = self.qs(*stop((params, latents['critic'])), actions).mean(axis=0)
        q_loss = -q.mean()
        if config.normalize_q_loss:
            q_loss = q_loss / stop(jnp.abs(q).mean())

        actor_loss = q_loss + config.alpha * bc_flow_loss
        return critic_loss + actor_loss, {
            **q_metrics(critic_loss, qs),
            'actor/loss': actor_loss,
            'actor/bc_flow_loss': bc_flow_loss,
            'actor/q_loss': q_loss,
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
