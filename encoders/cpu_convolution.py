"""The IMPALA encoder's 3x3 convolutions and max pooling, in a form that is fast on CPUs.

On CPUs a convolution of few channels is bound by the number of positions, not by arithmetic. XLA's
gradient of max pooling (select-and-scatter) runs on one thread, element by element. Strided pooling
reads memory in small pieces. All three problems disappear when each 2x2 block of pixels is one
position with four times the channels: the convolution is then over 2x2 blocks, with the 3x3 kernel
in four places among zeros, and the pooling reads whole blocks.

Blocks cost 16/9 of the multiplications, including those by zero. GPUs and TPUs have their own
kernels for the plain forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

SIZE = 3
LAYOUT = ('NHWC', 'HWIO', 'NHWC')
FEW_CHANNELS = 12
"""Up to this many channels, a convolution in blocks is faster than a plain one."""


class Convolution(nn.Module):
    """3x3 convolution, stride 1, SAME padding, with bias; parameters as those of `nn.Conv`.

    Attributes:
        features: channels of the result.
        dtype: of the computation; parameters are float32.
        pooled: whether max pooling, 3x3 with stride 2 and SAME padding, follows.
        plain: compute it with XLA's own operations, in their plain order, on every backend.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    pooled: bool = False
    plain: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve the input.

        Args:
            x: (b, h, w, c), float, or uint8 in [0, 255], which stands for [0, 1].

        Returns:
            (b, h, w, features) of `dtype`, or (b, ceil(h / 2), ceil(w / 2), features) if pooled.
        """
        shape = (SIZE, SIZE, x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.xavier_uniform(), shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros_init(), shape[-1:], jnp.float32)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.plain or jax.default_backend() != 'cpu':
            x = convolve(to_float(x, self.dtype), kernel) + bias
            return max_pool(x) if self.pooled else x
        if self.pooled:
            # Adding a bias is monotone, even with rounding, so it can come after the maximum.
            return add_bias(blocked_convolve_and_pool(x, kernel), bias)
        x = lax.optimization_barrier(to_float(x, self.dtype))
        convolve_here = blocked_convolve if x.shape[-1] <= FEW_CHANNELS else convolve
        return add_bias(convolve_here(x, kernel), bias)


def to_float(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x` as `dtype`; bytes in [0, 255] become numbers in [0, 1]."""
    return x.astype(dtype) / 255 if x.dtype == jnp.uint8 else x.astype(dtype)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias`, (b, h, w, c) + (c,); the bias's gradient sums over the batch first.

    XLA's sum over all axes except the last at once takes about seven times as long on CPUs.
    """
    return x + bias


def _add_bias_backward(residuals: None, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    del residuals
    over_batch = lax.optimization_barrier(cotangent.sum(axis=0, dtype=jnp.float32))
    return cotangent, over_batch.sum(axis=(0, 1)).astype(cotangent.dtype)


add_bias.defvjp(lambda x, bias: (x + bias, None), _add_bias_backward)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(b, h, w, c) convolved with (3, 3, c, o), stride 1, SAME padding -> (b, h, w, o)."""
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUT)


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling, 3x3, stride 2, SAME padding: (b, h, w, c) -> (b, ceil(h/2), ceil(w/2), c)."""
    window, strides = (1, SIZE, SIZE, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, 'SAME')


def blocked_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve`, computed in blocks; `x` may be uint8, see `to_float`."""
    (height, width), (top, left) = x.shape[1:3], _rows_before(x)
    blocks = convolve_blocks(to_blocks(x, (top + 1, left + 1)), kernel)
    batch, rows, columns, _ = blocks.shape
    pixels = blocks.reshape(batch, rows, columns, 2, 2, -1).swapaxes(2, 3)
    pixels = pixels.reshape(batch, 2 * rows, 2 * columns, -1)
    return pixels[:, top : top + height, left : left + width]


def blocked_convolve_and_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`max_pool` of `convolve`, with the same gradient, computed in blocks; `x` may be uint8.

    A window with ties gives its gradient to the first maximum in row order, as XLA's does.
    """
    top, left = _rows_before(x)
    if x.shape[-1] > FEW_CHANNELS:
        pixels = lax.optimization_barrier(convolve(to_float(x, kernel.dtype), kernel))
        return pool_blocks(to_blocks(pixels, (top, left), fill=-jnp.inf))
    blocks = convolve_blocks(to_blocks(x, (top + 1, left + 1)), kernel)
    if top or left:
        batch, rows, columns, _ = blocks.shape
        outside = np.zeros((rows, 2, columns, 2), bool)
        outside[0, :top] = outside[:, :, 0, :left] = True
        outside = outside.swapaxes(1, 2).reshape(rows, columns, 4, 1)
        pixels = blocks.reshape(batch, rows, columns, 4, -1)
        blocks = jnp.where(outside, -jnp.inf, pixels).reshape(blocks.shape)
    return pool_blocks(blocks)


def _rows_before(x: jax.Array) -> tuple[int, int]:
    """Rows and columns that a pooling's SAME padding adds before the first ones."""
    return x.shape[1] % 2, x.shape[2] % 2


def to_blocks(x: jax.Array, before: tuple[int, int], fill: float = 0) -> jax.Array:
    """2x2 pixels as one position.

    Args:
        x: (b, h, w, c).
        before: rows and columns of `fill` before the first ones; after the last ones, `fill`
            completes the last blocks.

    Returns:
        (b, ceil((h + before[0]) / 2), ceil((w + before[1]) / 2), 4 * c), pixels in row order.
    """
    batch, height, width, channels = x.shape
    top, left = before
    rows, columns = -(-(height + top) // 2), -(-(width + left) // 2)
    padding = ((0, 0), (top, 2 * rows - top - height), (left, 2 * columns - left - width), (0, 0))
    x = jnp.pad(x, padding, constant_values=fill)
    x = x.reshape(batch, rows, 2, columns, 2 * channels)
    return lax.optimization_barrier(jnp.concatenate([x[:, :, 0], x[:, :, 1]], axis=-1))


def convolve_blocks(blocks: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution from blocks to blocks.

    Args:
        blocks: (b, r + 1, s + 1, 4 * c), the first one starting one row and one column before the
            result.
        kernel: (3, 3, c, o).

    Returns:
        (b, r, s, 4 * o).
    """
    _, _, channels, features = kernel.shape
    # Rows and columns of two blocks, channels, pixels of one block, features.
    shifts = [((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)) for i in range(2) for j in range(2)]
    wide = jnp.stack([jnp.pad(kernel, shift) for shift in shifts], axis=3)
    wide = wide.reshape(2, 2, 2, 2, channels, 4 * features).swapaxes(1, 2)
    wide = wide.reshape(2, 2, 4 * channels, 4 * features)
    blocks = lax.optimization_barrier(to_float(blocks, kernel.dtype))
    return lax.conv_general_dilated(blocks, wide, (1, 1), 'VALID', dimension_numbers=LAYOUT)


@jax.custom_vjp
def pool_blocks(blocks: jax.Array) -> jax.Array:
    """The maxima of windows that begin at the first pixel of each block.

    A window of 3x3 pixels is its block, the first column of the block to the right, the first row
    of that below, and the first pixel of that below to the right. Nothing follows the last block.

    Args:
        blocks: float (b, r, s, 4 * c), pixels in row order.

    Returns:
        float (b, r, s, c).
    """
    return _pool_forward(blocks)[0]


def _pool_forward(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and the place (int8) of each window's first one for the backward pass."""

    def from_next(x: jax.Array, axis: int) -> jax.Array:
        padding = [(0, int(i == axis)) for i in range(x.ndim)]
        behind = -1 if x.dtype == jnp.int8 else -jnp.inf
        x = lax.slice_in_dim(x, 1, None, axis=axis)
        return jnp.pad(x, padding, constant_values=behind)

    def first_maximum(*choices: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (pooled, places), *others = choices
        for pixel, place in others:
            places = jnp.where(pixel > pooled, place, places)
            pooled = jnp.maximum(pooled, pixel)
        return pooled, places

    first, right, below, last = jnp.split(blocks, 4, axis=-1)
    zero, one, two = (jnp.full(first.shape, i, jnp.int8) for i in range(3))
    upper = first_maximum((first, zero), (right, one), (from_next(first, 2), two))
    lower = first_maximum((below, zero), (last, one), (from_next(below, 2), two))
    (top, top_places), (bottom, bottom_places) = lax.optimization_barrier((upper, lower))
    return lax.optimization_barrier(
        first_maximum(
            (top, top_places),
            (bottom, 3 + bottom_places),
            (from_next(top, 1), 6 + from_next(top_places, 1)),
        )
    )


def _pool_backward(places: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    cotangent = lax.optimization_barrier(cotangent)

    def share(place: int, up: int = 0, back: int = 0) -> jax.Array:
        """The gradient from the window this many blocks before, for the pixel at `place`."""
        rows, columns = cotangent.shape[1:3]
        given = jnp.where(places == place, cotangent, 0)
        return jnp.pad(given, ((0, 0), (up, 0), (back, 0), (0, 0)))[:, :rows, :columns]

    pixels = (
        share(0) + share(2, back=1) + share(6, up=1) + share(8, up=1, back=1),
        share(1) + share(7, up=1),
        share(3) + share(5, back=1),
        share(4),
    )
    return (lax.optimization_barrier(jnp.concatenate(pixels, axis=-1)),)


pool_blocks.defvjp(_pool_forward, _pool_backward)
