"""Implicit Q-Learning: a critic that never sees actions outside the data, and a Gaussian actor.

Differs from `fql.py`: a value function in place of the policy in the critic's target; the policy is
extracted by advantage-weighted regression (AWR), or by DDPG with behaviour cloning.

Source: Kostrikov, Nair, Levine, 'Offline Reinforcement Learning with Implicit Q-Learning', ICLR
2022, arXiv 2110.06169; extraction by DDPG+BC: Park et al. 2024, arXiv 2406.09329.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import IQLConfig
from fql.agents.objectives import clip_actions, gaussian_log_prob, implicit_q_loss
from fql.batch import Batch
from fql.encoding import Latents
from fql.learner import Metrics, Params
from fql.networks import Critic, GaussianActor, Head, Value

MAX_WEIGHT = 100.0
"""Largest weight of a sample in advantage-weighted regression."""


@dataclass(frozen=True)
class IQL(Agent):
    """Critics, a value function and a Gaussian actor."""

    config: IQLConfig
    policies = ('mean', 'sample')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        std: Literal['constant', 'free'] = 'constant' if config.const_std else 'free'
        return {
            'critic': Head(Critic(dims, config.critic_layer_norm, dtype), (size,)),
            'value': Head(Value(dims, config.critic_layer_norm, dtype)),
            'actor': Head(GaussianActor(dims, size, config.actor_layer_norm, std, dtype)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """Critic and value function regress to returns; the actor follows both."""
        return {'critic': True, 'value': True, 'actor': False}

    def sample_draws(self, key: jax.Array, batch: Batch) -> jax.Array:
        """The policy's noise, (b, a) normal; only `ddpgbc` with a learnt std uses it."""
        return jax.random.normal(key, batch.actions.shape)

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Value loss + critic loss + actor loss."""
        del step
        self.check(batch)
        latents = self.encoding.latents(params, batch.observations)
        critic, critic_metrics = implicit_q_loss(self, params, target_params, batch, latents)
        extract = self.awr if self.config.actor_loss == 'awr' else self.ddpgbc
        actor, actor_metrics = extract(params, batch, latents, draws)
        return critic + actor, {**critic_metrics, 'actor/loss': actor, **actor_metrics}

    def awr(
        self, params: Params, batch: Batch, latents: Latents, noise: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """`-mean(w log pi(a | o))`, `w = min(exp(alpha * A), 100)`, A = min_k Q_k(o, a) - V(o).

        The weight has no gradient, and its critics are the online ones.
        """
        del noise
        q = self.qs(params, latents['critic'], batch.actions).min(axis=0)
        advantage = q - self.apply(params, 'value', latents['value'])
        weight = jnp.minimum(jnp.exp(self.config.alpha * advantage), MAX_WEIGHT)
        mean, log_std = self.apply(params, 'actor', latents['actor'])
        log_prob = gaussian_log_prob(mean, log_std, batch.actions)
        loss = -jnp.mean(jax.lax.stop_gradient(weight) * log_prob)
        return loss, {
            'actor/advantage_mean': advantage.mean(),
            **self.clone_metrics(mean, log_std, log_prob, batch),
        }

    def ddpgbc(
        self, params: Params, batch: Batch, latents: Latents, noise: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """`-mean(q) / mean|q| - alpha * mean log pi(a | o)`, q = min_k Q_k(o, clip(a_pi))."""
        stop = jax.lax.stop_gradient
        mean, log_std = self.apply(params, 'actor', latents['actor'])
        actions = mean if self.config.const_std else mean + jnp.exp(log_std) * noise
        q = self.qs(*stop((params, latents['critic'])), clip_actions(actions)).min(axis=0)
        q_loss = -q.mean() / stop(jnp.abs(q).mean())
        log_prob = gaussian_log_prob(mean, log_std, batch.actions)
        bc_loss = -self.config.alpha * log_prob.mean()
        return q_loss + bc_loss, {
            'actor/q_loss': q_loss,
            'actor/bc_loss': bc_loss,
            'actor/policy_q_mean': q.mean(),
            'actor/policy_q_abs_mean': jnp.abs(q).mean(),
            **self.clone_metrics(mean, log_std, log_prob, batch),
        }

    def clone_metrics(
        self, mean: jax.Array, log_std: jax.Array, log_prob: jax.Array, batch: Batch
    ) -> Metrics:
        """Metrics of the actor's distance to the data's actions."""
        return {
            'actor/bc_log_prob': log_prob.mean(),
            'actor/mse': jnp.mean((mean - batch.actions) ** 2),
            'actor/std': jnp.exp(log_std).mean(),
        }

    @property
    def exploring_policy(self) -> str:
        """See `Agent`."""
        return 'sample'

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`mean`, or `sample` of the Gaussian, clipped; with `const_std` the std is 1."""
        latents = self.encoding.encode(params, 'actor', observations)
        mean, log_std = self.apply(params, 'actor', latents)
        actions = mean + jnp.exp(log_std) * noise if policy == 'sample' else mean
        return clip_actions(actions)[:, None]
