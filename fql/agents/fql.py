"""Flow Q-Learning: a flow-matching behaviour policy, and a one-step policy distilled from it.

Source: Park, Li, Levine, 'Flow Q-Learning', ICML 2025, arXiv 2502.02538, and what its public
implementation computes. The other agents' files say what differs from this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange

from fql.agents.base import Agent
from fql.agents.configs import FQLConfig
from fql.agents.objectives import (
    FlowDraws,
    aggregate,
    as_chunks,
    clip_actions,
    critics_best,
    flow_actions,
    flow_errors,
    q_metrics,
    sample_flow_draws,
    tile,
    velocity,
)
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, Head, VectorField


@dataclass(frozen=True)
class FQL(Agent):
    """Critics, a velocity field v, and a one-step policy mu."""

    config: FQLConfig
    policies = ('one_step', 'bc_flow')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dtype = jnp.dtype(config.precision)
        critic = Critic(config.hidden_dims, config.critic_layer_norm, dtype, config.num_critics)
        actor = VectorField(config.hidden_dims, size, config.actor_layer_norm, dtype)
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
        """Steps of the return in the critic's target."""
        return self.config.horizon

    @property
    def needs(self) -> frozenset[str]:
        """Which steps lie within the trajectory."""
        return frozenset({'valid'} if self.horizon > 1 else ())

    def sample_draws(self, key: jax.Array, batch: Batch) -> FlowDraws:
        """`policy_noise` is shared by the distillation and Q terms.

        With several target candidates, `next_action_noise` is (b, candidates, a). JAX's
        `split(key, n)[i]` is `fold_in(key, i)`: the numbers here are those that
        `sample_flow_draws` leaves.
        """
        size, count = len(batch.actions), self.config.target_candidates
        draws = sample_flow_draws(key, (size, self.spec.action_dim))
        if count > 1:
            shape = (size, count, self.spec.action_dim)
            noise = jax.random.normal(jax.random.fold_in(key, 4), shape)
            draws = draws._replace(next_action_noise=noise)
        if self.config.distillation == 'velocity':
            time = jax.random.uniform(jax.random.fold_in(key, 5), (size, 1))
            draws = draws._replace(distill_time=time)
        return draws

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: FlowDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + BC-flow loss + alpha * distillation + Q term."""
        del step
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        chunks = as_chunks(batch, chunked=False)
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'one_step_policy')
        )

        # mean((Q_k(o, a) - y)^2), y = r + discount * m * agg_k Qbar_k(o', clip(mu(o', z'))). With a
        # horizon h: the return of h steps, discount^h, and o' after them; steps that cross the end
        # of a trajectory are left out. With several candidates, the online critics choose a'. They
        # read the target critics' latents, so that o' is encoded once; with separate encoders they
        # read their own.
        choosing_latents = next_latents['critic']
        if not self.encoding.shared:
            choosing_latents = self.encoding.encode(params, 'critic', batch.next_observations)
        next_actions = self.choose(
            params, next_latents['one_step_policy'], choosing_latents, draws.next_action_noise
        )
        next_qs = self.qs(target_params, next_latents['critic'], next_actions)
        next_q = aggregate(next_qs, config.q_agg, config.critic_pessimism)
        discount = config.discount**config.horizon
        target = stop(chunks.rewards + discount * chunks.masks * next_q)
        qs = self.qs(params, latents['critic'], chunks.actions)
        critic_loss = jnp.mean(chunks.valid * (qs - target) ** 2)

        # mean((v(o, x_t, t) - (a - z))^2).
        bc_flow_loss = jnp.mean(
            flow_errors(
                velocity(self, params, latents['bc_flow']),
                chunks.actions,
                draws.flow_noise,
                draws.flow_time,
            )
        )

        # mean((mu(o, z) - a_flow(o, z))^2), mu unclipped and no gradient into the flow.
        actions = self.one_step(params, latents['one_step_policy'], draws.policy_noise)
        fixed_flow = velocity(self, stop(params), stop(latents['bc_flow']))
        if draws.distill_time is None:
            teacher = stop(flow_actions(fixed_flow, draws.policy_noise, config.flow_steps))
            distill_loss = jnp.mean((actions - teacher) ** 2)
        else:
            # mean((mu - z - v(o, x_t, t))^2), x_t between z and mu, with its gradient.
            distill_loss = jnp.mean(
                flow_errors(fixed_flow, actions, draws.policy_noise, draws.distill_time)
            )

        # -mean_k Q_k(o, clip(mu(o, z))), gradient into mu only; optionally over mean |Q|.
        q = self.qs(*stop((params, latents['critic'])), clip_actions(actions)).mean(axis=0)
        q_loss = -q.mean()
        if config.normalize_q_loss:
            q_loss = q_loss / stop(jnp.abs(q).mean())

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
        """Noise of every candidate, where there are several."""
        count = self.config.candidates
        return (*([count] if count > 1 else []), self.spec.action_dim)

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`one_step`: clip(mu(o, z)), the best of the candidates; `bc_flow`: the flow policy."""
        if policy == 'bc_flow':
            latents = self.encoding.encode(params, 'bc_flow', observations)
            first = noise if noise.ndim == 2 else noise[:, 0]
            return self.flow(params, latents, first)[:, None]
        latents = self.encoding.encode(params, 'one_step_policy', observations)
        critic_latents = self.encoding.encode(params, 'critic', observations)
        return self.choose(params, latents, critic_latents, noise)[:, None]

    def choose(
        self, params: Params, latents: jax.Array, critic_latents: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """clip(mu(o, z)), (b, a); from noise (b, n, a) the critics' best of n."""
        if noise.ndim == 2:
            return clip_actions(self.one_step(params, latents, noise))
        rows = rearrange(noise, 'b n a -> (b n) a')
        candidates = clip_actions(self.one_step(params, tile(latents, noise.shape[1]), rows))
        config = self.config
        combine = partial(aggregate, how=config.q_agg, pessimism=config.critic_pessimism)
        return critics_best(self, params, critic_latents, candidates.reshape(noise.shape), combine)

    def one_step(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """mu(o, z), (b, a), not clipped."""
        return self.apply(params, 'one_step_policy', latents, noise)

    def flow(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """The flow policy's actions (b, a) from this noise."""
        return flow_actions(velocity(self, params, latents), noise, self.config.flow_steps)
