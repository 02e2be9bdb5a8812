"""The losses of Flow Q-Learning (Park, Li, Levine, ICML 2025, arXiv 2502.02538).

Each is a pure function of parameters, latents, a batch and given draws, and returns
`(scalar, metrics)`. Which parameters a loss trains is decided by the parameters and latents it is
given and by the stop-gradients written here; `fql.latents` decides which encoder it reaches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fql.batch import Batch
from fql.config import AgentConfig
from fql.flow import euler_integrate, interpolate
from fql.latents import Latents
from fql.networks import Networks, Params

Metrics = dict[str, jax.Array]


class Draws(NamedTuple):
    """The random numbers of one update.

    Attributes:
        next_action_noise: (b, a) normal; the one-step policy's noise at o', in the critic target.
        flow_noise: (b, a) normal; x_0 of the flow-matching path.
        flow_time: (b, 1) uniform in [0, 1); t of the flow-matching path.
        policy_noise: (b, a) normal; shared by the distillation and Q terms.
    """

    next_action_noise: jax.Array
    flow_noise: jax.Array
    flow_time: jax.Array
    policy_noise: jax.Array


def sample_draws(key: jax.Array, batch_size: int, action_dim: int) -> Draws:
    """The draws of an update, from its key."""
    keys = jax.random.split(key, 4)
    shape = (batch_size, action_dim)
    return Draws(
        next_action_noise=jax.random.normal(keys[0], shape),
        flow_noise=jax.random.normal(keys[1], shape),
        flow_time=jax.random.uniform(keys[2], (batch_size, 1)),
        policy_noise=jax.random.normal(keys[3], shape),
    )


def clip_actions(actions: jax.Array) -> jax.Array:
    """Actions limited to the range that environments take, [-1, 1]."""
    return jnp.clip(actions, -1.0, 1.0)


def critic_loss(
    params: Params,
    target_params: Params,
    networks: Networks,
    config: AgentConfig,
    latents: Latents,
    batch: Batch,
    noise: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((Q_k(o, a) - y)^2)`, `y = r + discount * m * agg_k Qbar_k(o', clip(mu(o', z')))`."""
    next_actions = clip_actions(networks.one_step(params, latents.next_one_step_policy, noise))
    next_qs = networks.qs(target_params, latents.next_target_critic, next_actions)
    next_q = next_qs.min(axis=0) if config.q_agg == 'min' else next_qs.mean(axis=0)
    target = jax.lax.stop_gradient(batch.rewards + config.discount * batch.masks * next_q)
    qs = networks.qs(params, latents.critic, batch.actions)
    loss = jnp.mean((qs - target) ** 2)
    return loss, {
        'critic/loss': loss,
        'critic/q_mean': qs.mean(),
        'critic/q_min': qs.min(),
        'critic/q_max': qs.max(),
    }


def bc_flow_loss(
    params: Params,
    networks: Networks,
    latents: Latents,
    batch: Batch,
    noise: jax.Array,
    time: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((v(o, x_t, t) - (a - z))^2)`: flow matching to the data's actions."""
    x_t = interpolate(noise, batch.actions, time)
    velocity = networks.velocity(params, latents.bc_flow, x_t, time)
    loss = jnp.mean((velocity - (batch.actions - noise)) ** 2)
    return loss, {'actor/bc_flow_loss': loss}


def flow_actions(
    params: Params, networks: Networks, config: AgentConfig, latents: jax.Array, noise: jax.Array
) -> jax.Array:
    """Actions (b, a) of the flow policy: Euler from noise along the learnt velocity, clipped."""
    return clip_actions(
        euler_integrate(
            lambda x, time: networks.velocity(params, latents, x, time),
            noise,
            config.flow_steps,
        )
    )


def distill_loss(
    params: Params,
    networks: Networks,
    config: AgentConfig,
    latents: Latents,
    policy_actions: jax.Array,
    noise: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((mu(o, z) - a_flow(o, z))^2)` with mu unclipped and no gradient into the flow."""
    teacher = jax.lax.stop_gradient(
        flow_actions(params, networks, config, jax.lax.stop_gradient(latents.bc_flow), noise)
    )
    loss = jnp.mean((policy_actions - teacher) ** 2)
    return loss, {'actor/distill_loss': loss}


def q_loss(
    params: Params,
    networks: Networks,
    config: AgentConfig,
    latents: Latents,
    policy_actions: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`-mean_k Q_k(o, clip(mu(o, z)))`, gradient into mu only; optionally over mean |Q|."""
    fixed_params, fixed_latents = jax.lax.stop_gradient((params, latents.critic))
    qs = networks.qs(fixed_params, fixed_latents, clip_actions(policy_actions))
    q = qs.mean(axis=0)
    loss = -q.mean()
    if config.normalize_q_loss:
        loss = loss / jax.lax.stop_gradient(jnp.abs(q).mean())
    return loss, {'actor/q_loss': loss}


def total_loss(
    params: Params,
    target_params: Params,
    networks: Networks,
    config: AgentConfig,
    latents: Latents,
    batch: Batch,
    draws: Draws,
) -> tuple[jax.Array, Metrics]:
    """Critic loss + BC-flow loss + alpha * distillation + Q term."""
    policy_actions = networks.one_step(params, latents.one_step_policy, draws.policy_noise)
    critic, critic_metrics = critic_loss(
        params, target_params, networks, config, latents, batch, draws.next_action_noise
    )
    bc_flow, bc_flow_metrics = bc_flow_loss(
        params, networks, latents, batch, draws.flow_noise, draws.flow_time
    )
    distill, distill_metrics = distill_loss(
        params, networks, config, latents, policy_actions, draws.policy_noise
    )
    q_term, q_metrics = q_loss(params, networks, config, latents, policy_actions)
    actor = bc_flow + config.alpha * distill + q_term
    loss = critic + actor
    metrics = {
        'loss': loss,
        **critic_metrics,
        'actor/loss': actor,
        **bc_flow_metrics,
        **distill_metrics,
        **q_metrics,
    }
    return loss, metrics
