"""ReBRAC: TD3 with behaviour cloning in the actor's loss and in the critic's target.

Differs from `fql.py`: a deterministic actor with its own target network; noise on the target
actor's actions; the distance to the data's actions is a penalty on both sides; the actor and both
targets move only every `actor_freq` updates.

Source: Tarasov et al., 'Revisiting the Minimalist Approach to Offline Reinforcement Learning',
NeurIPS 2023, arXiv 2305.09836, as the FQL repository implements it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import ReBRACConfig
from fql.agents.objectives import clip_actions, q_metrics
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, GaussianActor, Head


@dataclass(frozen=True)
class ReBRAC(Agent):
    """Critics and a deterministic actor, both with target networks."""

    config: ReBRACConfig
    policies = ('mode', 'noisy')
    averaged_heads = ('critic', 'actor')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        return {
            'critic': Head(Critic(dims, config.critic_layer_norm, dtype), (size,)),
            'actor': Head(GaussianActor(dims, size, config.actor_layer_norm, 'constant', dtype)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """The actor follows a moving critic; it trains no encoder."""
        return {'critic': True, 'actor': False}

    @property
    def needs(self) -> frozenset[str]:
        """The data's action at o', and whether it is of the same trajectory."""
        valid = set() if self.config.as_published else {'next_actions_valid'}
        return frozenset({'next_actions', *valid})

    def is_full(self, step: jax.Array) -> jax.Array:
        """Whether the update made from `step`, () int32, moves the actor and the targets."""
        return (step + 1) % self.config.actor_freq == 0

    def target_rate(self, step: jax.Array) -> jax.Array:
        """tau in full updates, 0 between them."""
        return jnp.where(self.is_full(step), self.config.tau, 0.0)

    def sample_draws(self, key: jax.Array, batch: Batch) -> jax.Array:
        """The noise on the target actor's actions, (b, a) normal."""
        return jax.random.normal(key, batch.actions.shape)

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss, and in full updates the actor's loss.

        One Adam serves all: between full updates the actor's gradient is zero, but its moments
        still decay and move it.
        """
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        assert batch.next_actions is not None
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'actor')
        )

        # y = r + discount * m * (min_k Qbar_k(o', a') - alpha_critic * |a' - a'_data|^2).
        noise = jnp.clip(
            config.actor_noise * draws, -config.actor_noise_clip, config.actor_noise_clip
        )
        next_actions = clip_actions(self.mode(target_params, next_latents['actor']) + noise)
        next_q = self.qs(target_params, next_latents['critic'], next_actions).min(axis=0)
        penalty = jnp.sum((next_actions - batch.next_actions) ** 2, axis=-1)
        if batch.next_actions_valid is not None and not config.as_published:
            # At a trajectory's last transition the next row of the data is another trajectory's.
            penalty = penalty * batch.next_actions_valid
        next_q = next_q - config.alpha_critic * penalty
        target = stop(batch.rewards + config.discount * batch.masks * next_q)
        qs = self.qs(params, latents['critic'], batch.actions)
        critic_loss = jnp.mean((qs - target) ** 2)

        # -mean(q) / mean|q| + alpha_actor * mean |pi(o) - a|^2, q = min_k Q_k(o, pi(o)).
        actions = self.mode(params, latents['actor'])
        q = self.qs(*stop((params, latents['critic'])), actions).min(axis=0)
        q_loss = -q.mean() / stop(jnp.abs(q).mean())
        squared_error = jnp.sum((actions - batch.actions) ** 2, axis=-1)
        bc_loss = config.alpha_actor * squared_error.mean()
        actor_loss = jnp.where(self.is_full(step), q_loss + bc_loss, 0.0)

        return critic_loss + actor_loss, {
            **q_metrics(critic_loss, qs),
            'actor/loss': actor_loss,
            'actor/q_loss': q_loss,
            'actor/bc_loss': bc_loss,
            'actor/squared_error': squared_error.mean(),
        }

    def mode(self, params: Params, latents: jax.Array) -> jax.Array:
        """The actor's actions (b, a) without noise."""
        mean, _ = self.apply(params, 'actor', latents)
        return jnp.tanh(mean) if self.config.tanh_squash else mean

    @property
    def exploring_policy(self) -> str:
        """See `Agent`."""
        return 'noisy'

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`mode`, or `noisy`: with the same noise as the target actor's."""
        config = self.config
        actions = self.mode(params, self.encoding.encode(params, 'actor', observations))
        if policy == 'noisy':
            limit = config.actor_noise_clip
            actions = actions + jnp.clip(config.actor_noise * noise, -limit, limit)
        return clip_actions(actions)[:, None]
