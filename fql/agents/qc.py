"""Q-chunking: the best of several chunks of actions that a flow policy samples.

Differs from `qc_fql.py`: there is no one-step policy. The flow's samples are improved by the
critics' choice, when acting and in the critic's target: the online critics choose the chunk there,
and the target critics value it.

Source: Li, Zhou, Levine, 'Reinforcement Learning with Action Chunking', 2025, arXiv 2507.07969, and
what its public implementation computes (`best-of-n`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from fql.agents.base import Agent
from fql.agents.configs import QCConfig
from fql.agents.objectives import (
    aggregate,
    as_chunks,
    critics_best,
    flow_actions,
    flow_errors,
    q_metrics,
    tile,
    velocity,
)
from fql.batch import Batch
from fql.learner import Metrics, Params
from fql.networks import Critic, Head, VectorField


class QCDraws(NamedTuple):
    """The random numbers of one update.

    Attributes:
        next_action_noise: (b, num_samples, n) normal; the flow's noise in the critic's target.
        flow_noise: (b, n) normal; x_0 of the flow-matching path.
        flow_time: (b, 1) uniform in [0, 1); t of the flow-matching path.
    """

    next_action_noise: jax.Array
    flow_noise: jax.Array
    flow_time: jax.Array


@dataclass(frozen=True)
class QC(Agent):
    """Critics and a velocity field, of chunks."""

    config: QCConfig
    policies = ('best_of_n', 'bc_flow')

    @property
    def heads(self) -> Mapping[str, Head]:
        """See `Agent`."""
        config, size = self.config, self.action_size
        dims, dtype = config.hidden_dims, jnp.dtype(config.precision)
        critic = Critic(dims, config.critic_layer_norm, dtype, config.num_critics)
        return {
            'critic': Head(critic, (size,)),
            'bc_flow': Head(VectorField(dims, size, config.actor_layer_norm, dtype), (size, 1)),
        }

    @property
    def trains_encoder(self) -> Mapping[str, bool]:
        """Flow matching is regression to the data's actions."""
        return {'critic': True, 'bc_flow': self.config.bc_flow_trains_encoder}

    @property
    def horizon(self) -> int:
        """Steps of the return, and from an observation to the next one."""
        return self.config.horizon

    @property
    def action_horizon(self) -> int:
        """All actions of a chunk are executed, one after the other."""
        return self.config.horizon if self.config.action_chunking else 1

    @property
    def action_size(self) -> int:
        """Numbers that the policy gives for an observation."""
        return self.action_horizon * self.spec.action_dim

    @property
    def needs(self) -> frozenset[str]:
        """Which steps lie within the trajectory."""
        return frozenset({'valid'} if self.horizon > 1 else ())

    def sample_draws(self, key: jax.Array, batch: Batch) -> QCDraws:
        """See `Agent`."""
        keys = jax.random.split(key, 3)
        size = len(batch.actions)
        return QCDraws(
            next_action_noise=jax.random.normal(keys[0], (size, *self.noise_shape)),
            flow_noise=jax.random.normal(keys[1], (size, self.action_size)),
            flow_time=jax.random.uniform(keys[2], (size, 1)),
        )

    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: QCDraws, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Critic loss + BC-flow loss."""
        del step
        self.check(batch)
        config, stop = self.config, jax.lax.stop_gradient
        chunks = as_chunks(batch, config.action_chunking)
        latents = self.encoding.latents(params, batch.observations)
        next_latents = self.encoding.target_latents(
            params, target_params, batch.next_observations, ('critic', 'bc_flow')
        )
        # The online critics read the averaged shared encoder too, so that o_h is encoded once.
        choosing_latents = next_latents['critic']
        if not self.encoding.shared:
            choosing_latents = self.encoding.encode(params, 'critic', batch.next_observations)

        # y = R + discount^h * M * agg_k Qbar_k(o_h, A'), A' the online critics' best.
        next_actions = self.choose(
            stop(params), next_latents['bc_flow'], choosing_latents, draws.next_action_noise
        )
        next_qs = self.qs(target_params, next_latents['critic'], next_actions)
        discount = config.discount**config.horizon
        next_q = aggregate(next_qs, config.q_agg)
        target = stop(chunks.rewards + discount * chunks.masks * next_q)
        qs = self.qs(params, latents['critic'], chunks.actions)
        critic_loss = jnp.mean(chunks.valid * (qs - target) ** 2)

        errors = flow_errors(
            velocity(self, params, latents['bc_flow']),
            chunks.actions,
            draws.flow_noise,
            draws.flow_time,
        )
        bc_flow_loss = jnp.mean(chunks.action_weights * errors)
        return critic_loss + bc_flow_loss, {
            **q_metrics(critic_loss, qs),
            'actor/bc_flow_loss': bc_flow_loss,
        }

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of every candidate, (num_samples, n)."""
        return (self.config.num_samples, self.action_size)

    def act(
        self, params: Params, observations: jax.Array, noise: jax.Array, policy: str
    ) -> jax.Array:
        """`best_of_n`: the flow's chunk with the largest agg_k Q_k; `bc_flow`: its first sample."""
        latents = self.encoding.encode(params, 'bc_flow', observations)
        if policy == 'bc_flow':
            actions = self.flow(params, latents, noise[:, :1])[:, 0]
        else:
            critic_latents = self.encoding.encode(params, 'critic', observations)
            actions = self.choose(params, latents, critic_latents, noise)
        return rearrange(actions, 'b (h a) -> b h a', h=self.action_horizon)

    def choose(
        self, params: Params, latents: jax.Array, critic_latents: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Of the flow's chunks from noise (b, num_samples, n), the critics' best, (b, n)."""
        candidates = self.flow(params, latents, noise)
        combine = partial(aggregate, how=self.config.q_agg)
        return critics_best(self, params, critic_latents, candidates, combine)

    def flow(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """The flow policy's chunks (b, s, n) from noise of this shape."""
        rows = tile(latents, noise.shape[1])
        actions = flow_actions(
            velocity(self, params, rows),
            rearrange(noise, 'b s n -> (b s) n'),
            self.config.flow_steps,
        )
        return actions.reshape(noise.shape)
