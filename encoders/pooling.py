"""The IMPALA encoder's max pooling, with a gradient that is fast on CPUs."""

import jax
import jax.numpy as jnp
from jax import lax

WINDOW = 3
STRIDE = 2
NOWHERE = -1
"""A place that no window's maximum has."""


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


def max_pool(x: jax.Array) -> jax.Array:
    """`plain_max_pool`, with the same gradient computed another way on CPUs.

    There XLA's gradient of a pooling (select-and-scatter) runs on one thread, element by element.
    Both ways give the gradient of a window with ties to its first maximum in row order.

    Args:
        x: float (b, h, w, c).

    Returns:
        float (b, ceil(h / 2), ceil(w / 2), c).
    """
    return fast_max_pool(x) if jax.default_backend() == 'cpu' else plain_max_pool(x)


@jax.custom_vjp
def fast_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` on CPUs: the forward pass of the gradient notes where each maximum lies.

    The backward pass then reads one byte for each window in place of the whole input.
    """
    return plain_max_pool(x)


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    pooled, places = find_maxima(x)
    # Of the input only the shape is needed; an empty array carries it.
    return pooled, (places, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array]:
    places, empty = residuals
    return (send_back(places, cotangent, empty.shape[1], empty.shape[2]),)


fast_max_pool.defvjp(_forward, _backward)


def find_maxima(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pooled values, and the place of each in its window.

    Args:
        x: float (b, h, w, c).

    Returns:
        `plain_max_pool(x)`, and int8 of the same shape: 3 * row + column of the first maximum.
    """
    (top, _), (left, _) = _pads(x.shape[1], x.shape[2])
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    bottom, right = 2 * rows + 1 - top - x.shape[1], 2 * columns + 1 - left - x.shape[2]
    padding = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)

    def view(place: int) -> jax.Array:
        i, j = divmod(place, WINDOW)
        return padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]

    pooled = view(0)
    places = jnp.zeros(pooled.shape, jnp.int8)
    for place in range(1, WINDOW * WINDOW):
        candidate = view(place)
        places = jnp.where(candidate > pooled, jnp.int8(place), places)
        pooled = jnp.maximum(candidate, pooled)
    return pooled, places


def send_back(places: jax.Array, cotangent: jax.Array, height: int, width: int) -> jax.Array:
    """The cotangent of the input, each window's share sent to where its maximum was.

    With rows and columns counted in the padded input, those of even number lie in two windows, the
    others in one. For every pixel the four windows that may hold it are asked at once, each for
    the place that the pixel would have there.

    Args:
        places: of `find_maxima`, (b, ceil(height / 2), ceil(width / 2), c).
        cotangent: of the pooled values, same shape.

    Returns:
        (b, height, width, c).
    """
    (top, _), (left, _) = _pads(height, width)
    batch, rows, columns, channels = places.shape
    # Whether a row and a column are odd, over (b, rows, 2, columns, 2, c).
    p = jnp.arange(2, dtype=jnp.int8).reshape(1, 1, 2, 1, 1, 1)
    q = p.reshape(1, 1, 1, 1, 2, 1)
    nowhere = jnp.int8(NOWHERE)
    windows = (  # (the window's distance upwards, to the left, the pixel's place in it)
        (0, 0, 3 * p + q),
        (1, 0, jnp.where(p == 0, 6 + q, nowhere)),
        (0, 1, jnp.where(q == 0, 3 * p + 2, nowhere)),
        (1, 1, jnp.where((p == 0) & (q == 0), jnp.int8(8), nowhere)),
    )

    def neighbours(x: jax.Array, up: int, back: int) -> jax.Array:
        shifted = jnp.pad(x, ((0, 0), (up, 0), (back, 0), (0, 0)))[:, :rows, :columns]
        return shifted[:, :, None, :, None, :]

    zero = jnp.zeros((), cotangent.dtype)
    grad = zero
    for up, back, place in windows:
        share = neighbours(cotangent, up, back)
        grad = grad + jnp.where(neighbours(places, up, back) == place, share, zero)
    grad = grad.reshape(batch, 2 * rows, 2 * columns, channels)
    return grad[:, top : top + height, left : left + width]


def _pads(height: int, width: int) -> list[tuple[int, int]]:
    """The SAME padding before and behind of rows and of columns."""
    return lax.padtype_to_pads((height, width), (WINDOW, WINDOW), (STRIDE, STRIDE), 'SAME')
