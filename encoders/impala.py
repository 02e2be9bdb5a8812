"""The IMPALA convolutional encoder (Espeholt et al. 2018), in the form FQL's reference uses."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.mlp import MLP
from encoders.pooling import max_pool


class ImpalaStack(nn.Module):
    """3x3 convolution, max pooling, residual blocks."""

    features: int
    num_blocks: int
    dtype: DTypeLike
    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) float -> (b, ceil(h/2), ceil(w/2), features) of `dtype`."""

        def conv(x: jax.Array, index: int) -> jax.Array:
            init, name = nn.initializers.xavier_uniform(), f'conv_{index}'
            return nn.Conv(self.features, (3, 3), kernel_init=init, dtype=self.dtype, name=name)(x)

        x = self.pool(conv(x, 0))
        for i in range(self.num_blocks):
            residual = x
            x = conv(nn.relu(x), 2 * i + 1)
            x = conv(nn.relu(x), 2 * i + 2)
            x = x + residual
        return x


class ImpalaEncoder(nn.Module):
    """Images to latents.

    Attributes:
        stack_sizes: channels of each stack; each stack halves height and width.
        num_blocks: residual blocks in each stack.
        hidden_dims: widths of the dense layers (GELU after each) behind the convolutions; the
            last one is the size of the latents.
        dtype: of the computation; parameters are float32.
        pool: max pooling, 3x3 with stride 2.
    """

    stack_sizes: Sequence[int] = (16, 32, 32)
    num_blocks: int = 1
    hidden_dims: Sequence[int] = (512,)
    dtype: DTypeLike = jnp.float32
    pool: Callable[[jax.Array], jax.Array] = max_pool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
            images: (b, h, w, c), uint8 in [0, 255] or float in [0, 1]; frames of a stack lie
                along the channels, oldest first.

        Returns:
            Latents, (b, hidden_dims[-1]) float32.

        Raises:
            TypeError: when the images are neither uint8 nor float.
        """
        if images.dtype == jnp.uint8:
            x = images.astype(self.dtype) / 255.0
        elif jnp.issubdtype(images.dtype, jnp.floating):
            x = images.astype(self.dtype)
        else:
            raise TypeError(f'images must be uint8 or float in [0, 1], got {images.dtype}')
        for i, features in enumerate(self.stack_sizes):
            stack = ImpalaStack(features, self.num_blocks, self.dtype, self.pool, name=f'stack_{i}')
            x = stack(x)
        x = rearrange(nn.relu(x), 'b h w c -> b (h w c)')
        return MLP(self.hidden_dims, activate_final=True, dtype=self.dtype, name='mlp')(x)


ENCODERS = {
    'impala_debug': ImpalaEncoder(stack_sizes=(4, 4), num_blocks=1),
    'impala_small': ImpalaEncoder(num_blocks=1),
    'impala': ImpalaEncoder(num_blocks=2),
    'impala_large': ImpalaEncoder(stack_sizes=(64, 128, 128), num_blocks=2, hidden_dims=(1024,)),
}
"""The named sizes. Their parameters are apart: a Flax module holds none."""
