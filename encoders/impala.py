"""The IMPALA convolutional encoder (Espeholt et al. 2018), in the form FQL's reference uses."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.cpu_convolution import Convolution
from encoders.mlp import MLP


class ImpalaStack(nn.Module):
    """3x3 convolution, max pooling, residual blocks."""

    features: int
    num_blocks: int
    dtype: DTypeLike
    plain: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(b, h, w, c) -> (b, ceil(h / 2), ceil(w / 2), features) of `dtype`."""

        def conv(x: jax.Array, index: int, pooled: bool = False) -> jax.Array:
            name = f'conv_{index}'
            return Convolution(self.features, self.dtype, pooled, self.plain, name=name)(x)

        x = conv(x, 0, pooled=True)
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
        hidden_dims: widths of the dense layers (GELU after each) after the convolutions; the
            last one is the size of the latents.
        dtype: of the computation; parameters are float32.
        plain: compute convolutions and pooling with XLA's own operations on every backend.
    """

    stack_sizes: Sequence[int] = (16, 32, 32)
    num_blocks: int = 1
    hidden_dims: Sequence[int] = (512,)
    dtype: DTypeLike = jnp.float32
    plain: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode images.

        Args:
            images: (b, h, w, c), uint8 in [0, 255] or float in [0, 1]; frames of a stack lie
                along the channels, oldest first.

        Returns:
            Latents, (b, hidden_dims[-1]) float32.

        Raises:
            TypeError: when the images are neither uint8 nor float.
        """
        if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f'images must be uint8 or float in [0, 1], got {images.dtype}')
        x = images
        for i, features in enumerate(self.stack_sizes):
            stack = ImpalaStack(
                features, self.num_blocks, self.dtype, self.plain, name=f'stack_{i}'
            )
            x = stack(x)
        x = rearrange(nn.relu(x), 'b h w c -> b (h w c)')
        return MLP(self.hidden_dims, activate_final=True, dtype=self.dtype, name='mlp')(x)


ENCODERS = {
    'impala_debug': ImpalaEncoder(stack_sizes=(4, 4), num_blocks=1),
    'impala_small': ImpalaEncoder(num_blocks=1),
    'impala': ImpalaEncoder(num_blocks=2),
    'impala_large': ImpalaEncoder(stack_sizes=(64, 128, 128), num_blocks=2, hidden_dims=(1024,)),
}
"""The named sizes. They contain no parameters, as a Flax module holds none."""
