"""The IMPALA encoder's max pooling, with a gradient that is fast on CPUs."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = 3
STRIDE = 2


def plain_max_pool(x: jax.Array) -> jax.Array:
    """Max pooling, 3x3, stride 2, SAME padding: (b, h, w, c) -> (b, ceil(h/2), ceil(w/2), c)."""
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        window_dimensions=(1, WINDOW, WINDOW, 1),
        window_strides=(1, STRIDE, STRIDE, 1),
        padding='SAME',
    )


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """`plain_max_pool` with the same gradient, computed another way where XLA is slow.

    XLA's gradient of a pooling (select-and-scatter) runs on one thread on CPUs. There the nine
    shifted views of the input are compared with the pooled values instead; elsewhere the plain
    form is kept. Both give the gradient of a window with ties to its first maximum in row order.

    Args:
        x: float (b, h, w, c).

    Returns:
        float (b, ceil(h / 2), ceil(w / 2), c).
    """
    return plain_max_pool(x)


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    pooled = plain_max_pool(x)
    return pooled, (x, pooled)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    x, pooled = residuals
    grad = lax.platform_dependent(
        x, pooled, cotangent, cpu=compare_shifted_windows, default=_select_and_scatter
    )
    return (grad,)


max_pool.defvjp(_forward, _backward)


def _select_and_scatter(x: jax.Array, pooled: jax.Array, cotangent: jax.Array) -> jax.Array:
    del pooled
    _, vjp = jax.vjp(plain_max_pool, x)
    return vjp(cotangent)[0]


def compare_shifted_windows(x: jax.Array, pooled: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Gradient of `plain_max_pool` by comparing the nine shifted views with the pooled values.

    Args:
        x: the input, (b, h, w, c).
        pooled: `plain_max_pool(x)`, (b, ceil(h / 2), ceil(w / 2), c).
        cotangent: of `pooled`, same shape.

    Returns:
        The cotangent of `x`, (b, h, w, c).
    """
    (top, bottom), (left, right) = lax.padtype_to_pads(
        x.shape[1:3], (WINDOW, WINDOW), (STRIDE, STRIDE), 'SAME'
    )
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=-jnp.inf)
    rows, columns = pooled.shape[1:3]
    taken = jnp.zeros(pooled.shape, bool)
    pieces: list[list[jax.Array]] = []
    for i in range(WINDOW):
        pieces.append([])
        for j in range(WINDOW):
            view = padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            first = (view == pooled) & ~taken
            taken = taken | first
            pieces[i].append(jnp.where(first, cotangent, 0))
    merged_columns = [_add_back(pieces[i], axis=2) for i in range(WINDOW)]
    grad = _add_back(merged_columns, axis=1)
    return grad[:, top : top + x.shape[1], left : left + x.shape[2]]


def _add_back(pieces: list[jax.Array], axis: int) -> jax.Array:
    """Sums three pieces of length n, at offsets 0, 1 and 2 with stride 2, to length 2n + 1."""
    first, middle, last = pieces
    pad = functools.partial(lax.pad, padding_value=jnp.zeros((), first.dtype))
    after = [(0, 1, 0) if i == axis else (0, 0, 0) for i in range(first.ndim)]
    before = [(1, 0, 0) if i == axis else (0, 0, 0) for i in range(first.ndim)]
    even = pad(first, padding_config=after) + pad(last, padding_config=before)
    odd = pad(middle, padding_config=after)
    shape = list(even.shape)
    shape[axis] *= 2
    interleaved = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return lax.slice_in_dim(interleaved, 0, shape[axis] - 1, axis=axis)
