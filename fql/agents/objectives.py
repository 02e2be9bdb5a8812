"""Pieces of losses that two or more agents use."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fql.agents.base import Metrics
from fql.agents.configs import Aggregation
from fql.flow import euler_integrate, interpolate

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
"""(x (b, a), t (b, 1)) -> (b, a): a vector field with parameters and latents bound."""


def clip_actions(actions: jax.Array) -> jax.Array:
    """Actions limited to the range that environments take, [-1, 1]."""
    return jnp.clip(actions, -1.0, 1.0)


def aggregate(qs: jax.Array, how: Aggregation) -> jax.Array:
    """One value (b,) of an ensemble's (critics, b)."""
    return qs.min(axis=0) if how == 'min' else qs.mean(axis=0)


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
