"""QC-FQL: FQL on chunks of actions, which are executed one after the other.

Differs from `fql.py`: the critic and both policies take h actions at once; the critic's target is
the return of h steps and discount^h times the value after them; chunks that cross the end of a
trajectory are left out of the critic's loss, and their actions beyond it out of the BC-flow loss.

Source: Li, Zhou, Levine, 'Reinforcement Learning with Action Chunking', 2025, arXiv 2507.07969, and
what its public implementation computes, whose `normalize_q_loss` has no effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange

from fql.agents.base import Agent
from fql.agents.configs import QCFQLConfig
from fql.agents.objectives import (
    FlowDraws,
    aggregate,
    as_chunks,
    clip_actions,
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
class QCFQL(Agent):
    """Critics, a velocity field v and a one-step policy mu, all of chunks."""

    config: QCFQLConfig
    policies = ('one_step', 'bc_flow')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.action_size
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        critic = Critic(dims, config.critic_layer_norm, dtype, config.num_critics)
        actor = VectorField(dims, size, config.actor_layer_norm, dtype)
        return {
            'critic': Head(critic, (size,)),
            'bc_flow': Head(actor, (size, 1)),
            'one_step_policy': Head(actor, (size,)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """The one-step policy follows a moving critic and flow; it trains no encoder."""
        return {
            'critic': True,
            'bc_flow': self.config.bc_flow_trains_encoder,
            'one_step_policy': False,
        }

    @property
    def horizon(self) -> int:
        """Steps of the return, and from an observation to the next one."""
        return self.config.horizon

    @property
    def action_horizon(self) -> int:
        """All actions of a chunk are executed, one after the other."""
        return self.config.horizon

    @property
    def action_size(self) -> int:
        """Numbers that the policy gives for an observation."""
        return self.action_horizon * self.spec.action_dim

    @property
    def needs(self) -> frozenset[str]:
        """Which steps lie within the trajectory."""
        return frozenset({'valid'} if self.horizon > 1 else ())

    def sample_draws(self, key: jax.Array, batch: Batch) -> FlowDraws:
        """`policy_noise` is shared by the distillation and Q terms."""
        return sample_flow_draws(key, (len(batch.actions), self.action_size))

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: FlowDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + BC-flow loss + alpha * distillation + Q term."""
        del step
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        chunks = as_chunks(batch, chunked=True)
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'one_step_policy')
        )

        # mean(valid (Q_k(o, A) - y)^2), y = R + discount^h * M * agg_k Qbar_k(o_h, clip(mu)).
        next_actions = clip_actions(
            self.one_step(params, next_latents['one_step_policy'], draws.next_action_noise)
        )
        next_qs = self.qs(target_params, next_latents['critic'], next_actions)
        discount = config.discount**config.horizon
        next_q = aggregate(next_qs, config.q_agg)
        target = stop(chunks.rewards + discount * chunks.masks * next_q)
        qs = self.qs(params, latents['critic'], chunks.actions)
        critic_loss = jnp.mean(chunks.valid * (qs - target) ** 2)

        # As in FQL, the mean over all actions, those beyond the trajectory's end counted as 0.
        errors = flow_errors(
            velocity(self, params, latents['bc_flow']),
            chunks.actions,
            draws.flow_noise,
            draws.flow_time,
        )
        bc_flow_loss = jnp.mean(chunks.action_weights * errors)

        # As in FQL; policies act everywhere, so that nothing is masked.
        actions = self.one_step(params, latents['one_step_policy'], draws.policy_noise)
        teacher = stop(self.flow(params, stop(latents['bc_flow']), draws.policy_noise))
        distill_loss = jnp.mean((actions - teacher) ** 2)
        q = self.qs(*stop((params, latents['critic'])), clip_actions(actions)).mean(axis=0)
        q_loss = -q.mean()

        actor_loss = bc_flow_loss + config.alpha * distill_loss + q_loss
        return critic_loss + actor_loss, {
            **q_metrics(critic_loss, qs),
            'actor/loss': actor_loss,
            'actor/bc_flow_loss': bc_flow_loss,
            'actor/distill_loss': distill_loss,
            'actor/q_loss': q_loss,
        }

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of a chunk."""
        return (self.action_size,)

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`one_step`: clip(mu(o, z)); `bc_flow`: the behaviour-cloned flow policy."""
        if policy == 'bc_flow':
            latents = self.encoding.encode(params, 'bc_flow', observations)
            actions = self.flow(params, latents, noise)
        else:
            latents = self.encoding.encode(params, 'one_step_policy', observations)
            actions = clip_actions(self.one_step(params, latents, noise))
        return rearrange(actions, 'b (h a) -> b h a', h=self.action_horizon)

    def one_step(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """mu(o, z), (b, n), not clipped."""
        return self.apply(params, 'one_step_policy', latents, noise)

    def flow(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """The flow policy's chunks (b, n) from this noise."""
        return flow_actions(velocity(self, params, latents), noise, self.config.flow_steps)
