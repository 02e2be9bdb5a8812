"""IFQL: IQL's critic and value function, and the best of several actions of a flow policy.

Differs from `iql.py`: the policy is behaviour-cloned by flow matching, and improved only when it
acts, by the critics' choice. Differs from `fql.py`: no policy is trained against the critic.

Source: the baseline of Park, Li, Levine, 'Flow Q-Learning', ICML 2025, arXiv 2502.02538; after
Hansen-Estruch et al., 'IDQL', 2023, arXiv 2304.10573.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fql.agents.base import Agent
from fql.agents.configs import IFQLConfig
from fql.agents.objectives import (
    aggregate,
    critics_best,
    flow_actions,
    flow_errors,
    implicit_q_loss,
    sample_path_draws,
    tile,
    velocity,
)
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, Head, Value, VectorField


@dataclass(frozen=True)
class IFQL(Agent):
    """Critics, a value function and a velocity field."""

    config: IFQLConfig
    policies = ('best_of_n', 'bc_flow')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.spec.action_dim
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        return {
            'critic': Head(Critic(dims, config.critic_layer_norm, dtype), (size,)),
            'value': Head(Value(dims, config.critic_layer_norm, dtype)),
            'bc_flow': Head(VectorField(dims, size, config.actor_layer_norm, dtype), (size, 1)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """All three regress to fixed or slowly moving targets."""
        return {'critic': True, 'value': True, 'bc_flow': self.config.bc_flow_trains_encoder}

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
        """Value loss + critic loss + BC-flow loss."""
        del step
        self.check(batch)
        latents = self.encoding.latents(params, batch.observations)
        critic, metrics = implicit_q_loss(self, params, target_params, batch, latents)
        errors = flow_errors(velocity(self, params, latents['bc_flow']), batch.actions, *draws)
        bc_flow_loss = jnp.mean(errors)
        return critic + bc_flow_loss, {**metrics, 'actor/bc_flow_loss': bc_flow_loss}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of every candidate, (n, a)."""
        return (self.config.num_samples, self.spec.action_dim)

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`best_of_n`: the sample with the largest min_k Q_k; `bc_flow`: its first sample."""
        size, count = noise.shape[0], 1 if policy == 'bc_flow' else noise.shape[1]
        latents = tile(self.encoding.encode(params, 'bc_flow', observations), count)
        candidates = flow_actions(
            velocity(self, params, latents),
            noise[:, :count].reshape(size * count, -1),
            self.config.flow_steps,
        )
        if policy == 'bc_flow':
            return candidates[:, None]
        critic_latents = self.encoding.encode(params, 'critic', observations)
        candidates = candidates.reshape(noise.shape)
        combine = partial(aggregate, how='min')
        return critics_best(self, params, critic_latents, candidates, combine)[:, None]
