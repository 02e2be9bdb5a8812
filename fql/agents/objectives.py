"""Pieces of losses that two or more agents use."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from einops import rearrange

from fql.agents.base import Agent
from fql.agents.configs import Aggregation, IFQLConfig, IQLConfig
from fql.batch import Batch
from fql.encoding import Latents
from fql.flow import euler_integrate, interpolate
from fql.learner import Metrics, Params

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""(x (b, a), t (b, 1)) -> (b, a): a vector field with parameters and latents bound."""

Combine = Callable[[jax.Array], jax.Array]
"""(critics, b) -> (b,): combines an ensemble's values into one."""


class FlowDraws(NamedTuple):
    """The random numbers of one update of an agent with a flow.

    Attributes:
        next_action_noise: (b, a) normal; the policy's noise at o', in the critic target.
        flow_noise: (b, a) normal; x_0 of the flow-matching path.
        flow_time: (b, 1) uniform in [0, 1); t of the flow-matching path.
        policy_noise: (b, a) normal; the policy's noise at o.
        distill_time: (b, 1) uniform in [0, 1); t where velocities are distilled.
    """

    next_action_noise: jax.Array
    flow_noise: jax.Array
    flow_time: jax.Array
    policy_noise: jax.Array
    distill_time: jax.Array | None = None


def sample_flow_draws(key: jax.Array, shape: tuple[int, ...]) -> FlowDraws:
    """Draws for actions of this shape, (b, a)."""
    keys = jax.random.split(key, 4)
    return FlowDraws(
        next_action_noise=jax.random.normal(keys[0], shape),
        flow_noise=jax.random.normal(keys[1], shape),
        flow_time=jax.random.uniform(keys[2], (shape[0], 1)),
        policy_noise=jax.random.normal(keys[3], shape),
    )


def sample_path_draws(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`flow_noise` (b, a) normal and `flow_time` (b, 1) uniform, for actions of this shape."""
    noise_key, time_key = jax.random.split(key)
    return jax.random.normal(noise_key, shape), jax.random.uniform(time_key, (shape[0], 1))


def clip_actions(actions: jax.Array) -> jax.Array:
    """Actions limited to the range that environments take, [-1, 1]."""
    return jnp.clip(actions, -1.0, 1.0)


def aggregate(qs: jax.Array, how: Aggregation, pessimism: float = 0.0) -> jax.Array:
    """An ensemble's values (critics, b) combined to (b,): `min`, or mean - pessimism * std."""
    if how == 'min':
        return qs.min(axis=0)
    mean = qs.mean(axis=0)
    return mean - pessimism * qs.std(axis=0) if pessimism else mean


def velocity(agent: Agent, params: Params, latents: jax.Array) -> Velocity:
    """The head `bc_flow` at latents (b, d)."""
    return partial(agent.apply, params, 'bc_flow', latents)


def flow_errors(
    velocity: Velocity, actions: jax.Array, noise: jax.Array, time: jax.Array
) -> jax.Array:
    """Squared errors of flow matching, (b, a): `(v(o, x_t, t) - (a - z))^2`."""
    x_t = interpolate(noise, actions, time)
    return (velocity(x_t, time) - (actions - noise)) ** 2


def flow_actions(velocity: Velocity, noise: jax.Array, steps: int) -> jax.Array:
    """Actions (b, a) of a flow policy: Euler from noise along the velocity, clipped at the end."""
    return clip_actions(euler_integrate(velocity, noise, steps))


def q_metrics(loss: jax.Array, qs: jax.Array) -> Metrics:
    """Metrics of a critic's loss, and of its predictions (critics, b)."""
    return {
        'critic/loss': loss,
        'critic/q_mean': qs.mean(),
        'critic/q_min': qs.min(),
        'critic/q_max': qs.max(),
    }


def implicit_q_loss(
    agent: Agent, params: Params, target_params: Params, batch: Batch, latents: Latents
) -> tuple[jax.Array, Metrics]:
    """IQL's value loss + critic loss (Kostrikov, Nair, Levine 2022, arXiv 2110.06169, eq. 5, 6).

    value: `mean rho(min_k Qbar_k(o, a) - V(o))`, `rho(d) = |expectile - 1(d < 0)| d^2`; critic:
    `mean sum_k (Q_k(o, a) - r - discount * m * V(o'))^2`, a sum over the critics as published.

    Args:
        latents: what the heads `critic` and `value` read of o.
    """
    config = cast(IQLConfig | IFQLConfig, agent.config)
    encode = agent.encoding.target_latents
    target_latents = encode(params, target_params, batch.observations, ('critic',))
    next_latents = encode(params, target_params, batch.next_observations, ('value',))

    target_q = agent.qs(target_params, target_latents['critic'], batch.actions).min(axis=0)
    v = agent.apply(params, 'value', latents['value'])
    difference = target_q - v
    weight = jnp.where(difference >= 0, config.expectile, 1 - config.expectile)
    value_loss = jnp.mean(weight * difference**2)

    next_v = agent.apply(params, 'value', next_latents['value'])
    target = jax.lax.stop_gradient(batch.rewards + config.discount * batch.masks * next_v)
    qs = agent.qs(params, latents['critic'], batch.actions)
    critic_loss = jnp.mean(jnp.sum((qs - target) ** 2, axis=0))
    return value_loss + critic_loss, {
        'value/loss': value_loss,
        'value/v_mean': v.mean(),
        'value/v_min': v.min(),
        'value/v_max': v.max(),
        **q_metrics(critic_loss, qs),
        'critic/target_mean': target.mean(),
        'critic/target_min': target.min(),
        'critic/target_max': target.max(),
    }


def gaussian_log_prob(mean: jax.Array, log_std: jax.Array, actions: jax.Array) -> jax.Array:
    """Log density (b,) of a diagonal Gaussian at actions (b, a)."""
    scaled = (actions - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * (scaled**2 + jnp.log(2 * jnp.pi)) - log_std, axis=-1)


def critics_best(
    agent: Agent, params: Params, latents: jax.Array, candidates: jax.Array, combine: Combine
) -> jax.Array:
    """The best by value, (b, a), of candidates (b, n, a).

    Args:
        latents: (b, d), what the critics read.
        combine: the critics' values (critics, b * n) to one each, (b * n,).
    """
    size, count = candidates.shape[:2]
    qs = agent.qs(params, tile(latents, count), rearrange(candidates, 'b n a -> (b n) a'))
    best = jnp.argmax(combine(qs).reshape(size, count), axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]


def tile(latents: jax.Array, count: int) -> jax.Array:
    """(b, d) -> (b * count, d): each row `count` times in succession."""
    return jnp.repeat(latents, count, axis=0)


class Chunks(NamedTuple):
    """The parts of a batch that agents on chunks of h actions read.

    Attributes:
        actions: (b, n) what the policy gives: the h actions in a row, or the first one.
        rewards: (b,) discounted sum over the h steps.
        masks: (b,) 0 where the task was complete in one of them.
        valid: (b,) 1 where all h steps lie within the trajectory.
        action_weights: (b, n) 1 for entries of `actions` that lie within the trajectory.
    """

    actions: jax.Array
    rewards: jax.Array
    masks: jax.Array
    valid: jax.Array
    action_weights: jax.Array


def as_chunks(batch: Batch, chunked: bool) -> Chunks:
    """The chunks of a batch over h steps, or of one over one step.

    Without chunks, flow matching on the first action is not masked, as published: it always lies
    within the trajectory.

    Args:
        chunked: whether the policy gives all actions, or the first one.
    """
    actions, rewards, masks, valid = batch.actions, batch.rewards, batch.masks, batch.valid
    if actions.ndim == 2:
        actions, rewards, masks = actions[:, None], rewards[:, None], masks[:, None]
    if valid is None:
        valid = jnp.ones_like(rewards)
    weights = jnp.broadcast_to(valid[..., None], actions.shape)
    if not chunked:
        actions, weights = actions[:, :1], jnp.ones_like(actions[:, :1])
    return Chunks(
        actions=rearrange(actions, 'b h a -> b (h a)'),
        rewards=rewards[:, -1],
        masks=masks[:, -1],
        valid=valid[:, -1],
        action_weights=rearrange(weights, 'b h a -> b (h a)'),
    )
