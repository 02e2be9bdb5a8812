"""Soft actor-critic; RLPD where half of each batch is data and there is no offline phase.

Differs from `fql.py`: a tanh-Gaussian actor that is rewarded for entropy, with a learnt
temperature, in place of the flow and the one-step policy; nothing ties it to the data.

Source: Haarnoja et al., 'Soft Actor-Critic Algorithms and Applications', 2018, arXiv 1812.05905;
Ball et al., 'Efficient Online Reinforcement Learning with Offline Data' (RLPD), ICML 2023, arXiv
2302.02948, as the FQL repository implements it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import SACConfig
from fql.agents.objectives import aggregate, clip_actions, gaussian_log_prob, q_metrics
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, GaussianActor, Head


class SACDraws(NamedTuple):
    """The random numbers of one update.

    Attributes:
        next_action_noise: (b, a) normal; the actor's noise at o', before tanh.
        policy_noise: (b, a) normal; the actor's noise at o.
    """

    next_action_noise: jax.Array
    policy_noise: jax.Array


@dataclass(frozen=True)
class SAC(Agent):
    """Critics, a tanh-Gaussian actor and the temperature alpha."""

    config: SACConfig
    policies = ('mode', 'sample')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        return {
            'critic': Head(Critic(dims, config.critic_layer_norm, dtype), (size,)),
            'actor': Head(GaussianActor(dims, size, config.actor_layer_norm, 'state', dtype)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """The actor follows a moving critic; it trains no encoder."""
        return {'critic': True, 'actor': False}

    def init_params(self, key: jax.Array) -> Params:
        """The temperature starts at 1."""
        return {**super().init_params(key), 'alpha': {'log_value': jnp.zeros(())}}

    def sample_draws(self, key: jax.Array, batch: Batch) -> SACDraws:
        """See `Agent`."""
        shape = batch.actions.shape
        return SACDraws(*(jax.random.normal(k, shape) for k in jax.random.split(key)))

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: SACDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + actor loss + temperature loss."""
        del step
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        alpha = jnp.exp(params['alpha']['log_value'])
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'actor')
        )

        # y = r + discount * m * (agg_k Qbar_k(o', a') - alpha log pi(a' | o')), a' ~ pi(o'); the
        # entropy only with `backup_entropy`.
        next_actions, next_log_prob, _ = self.sample(
            params, next_latents['actor'], draws.next_action_noise
        )
        next_qs = self.qs(target_params, next_latents['critic'], next_actions)
        next_q = aggregate(next_qs, config.q_agg)
        if config.backup_entropy:
            next_q = next_q - alpha * next_log_prob
        target = stop(batch.rewards + config.discount * batch.masks * next_q)
        qs = self.qs(params, latents['critic'], batch.actions)
        critic_loss = jnp.mean((qs - target) ** 2)

        # mean(alpha log pi(a | o) - mean_k Q_k(o, a)), a ~ pi(o), gradient into the actor only.
        actions, log_prob, std = self.sample(params, latents['actor'], draws.policy_noise)
        q = self.qs(*stop((params, latents['critic'])), actions).mean(axis=0)
        actor_loss = jnp.mean(stop(alpha) * log_prob - q)

        # alpha * (entropy - target entropy), gradient into log alpha through exp.
        entropy = -stop(log_prob.mean())
        target_entropy = -config.target_entropy_multiplier * self.spec.action_dim
        alpha_loss = alpha * (entropy - target_entropy)

        total = actor_loss + alpha_loss
        return critic_loss + total, {
            **q_metrics(critic_loss, qs),
            'actor/loss': actor_loss,
            'actor/total_loss': total,
            'actor/alpha': alpha,
            'actor/alpha_loss': alpha_loss,
            'actor/entropy': entropy,
            'actor/policy_q_mean': q.mean(),
            'actor/std': std.mean(),
        }

    def sample(
        self, params: Params, latents: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Actions (b, a) from this noise, their log densities (b,), and the std before tanh."""
        mean, log_std = self.apply(params, 'actor', latents)
        std = jnp.exp(log_std)
        before = mean + std * noise
        # log |d tanh(u) / du| = 2 (log 2 - u - softplus(-2u)).
        squash = jnp.sum(2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before)), axis=-1)
        return jnp.tanh(before), gaussian_log_prob(mean, log_std, before) - squash, std

    @property
    def exploring_policy(self) -> str:
        """See `Agent`."""
        return 'sample'

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`mode`: tanh of the mean; `sample`: a sample of the policy."""
        latents = self.encoding.encode(params, 'actor', observations)
        noise = noise if policy == 'sample' else jnp.zeros_like(noise)
        return clip_actions(self.sample(params, latents, noise)[0])[:, None]
