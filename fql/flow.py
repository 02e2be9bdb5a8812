"""Flow matching with straight paths from noise (t = 0) to action (t = 1)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def interpolate(noise: jax.Array, actions: jax.Array, time: jax.Array) -> jax.Array:
    """The point `x_t = (1 - t) * noise + t * action` of the path; (b, a), (b, a), (b, 1)."""
    return (1 - time) * noise + time * actions


def euler_integrate(
    velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, steps: int
) -> jax.Array:
    """Follow a velocity field from t = 0 to t = 1 in equal Euler steps.

    Args:
        velocity: (x (b, a), t (b, 1)) -> (b, a).
        noise: the start, (b, a).
        steps: number of Euler steps.

    Returns:
        The end, (b, a), not clipped.
    """
    x = noise
    for i in range(steps):
        time = jnp.full((*noise.shape[:-1], 1), i / steps)
        x = x + velocity(x, time) / steps
    return x
