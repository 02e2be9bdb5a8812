"""The multilayer perceptron at the end of the encoder and in every head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


class SplitDense(nn.Module):
    """A dense layer of several inputs, as if they were concatenated.

    Each input is multiplied with its own rows of the kernel. A compiler then sees when two calls
    share an input (the latents, in all Euler steps) and computes its product once.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """(..., d_i) float each -> (..., features) of `dtype`."""
        widths = [x.shape[-1] for x in inputs]
        kernel = self.param('kernel', KERNEL_INIT, (sum(widths), self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
        result = bias.astype(self.dtype)
        start = 0
        for x, width in zip(inputs, widths, strict=True):
            rows = kernel[start : start + width]
            result = result + x.astype(self.dtype) @ rows.astype(self.dtype)
            start += width
        return result


class MLP(nn.Module):
    """Dense layers with GELU (tanh approximation) between them.

    Attributes:
        features: widths of the layers, the last included.
        activate_final: whether the last layer is a hidden one too (activation, LayerNorm).
        layer_norm: LayerNorm after the activation of each hidden layer, as in the reference.
        dtype: of the computation; parameters, and the statistics of LayerNorm, are float32.
    """

    features: Sequence[int]
    activate_final: bool = False
    layer_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """(..., d_i) float, taken as one concatenated input -> (..., features[-1]) float32."""
        x = jnp.empty(())
        for i, width in enumerate(self.features):
            if i == 0:
                x = SplitDense(width, self.dtype, name='dense_0')(*inputs)
            else:
                x = nn.Dense(width, kernel_init=KERNEL_INIT, dtype=self.dtype, name=f'dense_{i}')(x)
            if i < len(self.features) - 1 or self.activate_final:
                x = nn.gelu(x)
                if self.layer_norm:
                    x = nn.LayerNorm(dtype=self.dtype, name=f'layer_norm_{i}')(x)
        return x.astype(jnp.float32)
