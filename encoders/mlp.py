"""The multilayer perceptron at the end of the encoder and in every head."""

from collections.abc import Sequence

import jax
from flax import linen as nn

KERNEL_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


class MLP(nn.Module):
    """Dense layers with GELU (tanh approximation) between them.

    Attributes:
        features: widths of the layers, the last included.
        activate_final: whether the last layer is a hidden one too (activation, LayerNorm).
        layer_norm: LayerNorm after the activation of each hidden layer, as in the reference.
    """

    features: Sequence[int]
    activate_final: bool = False
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d) float -> (..., features[-1]) float."""
        for i, width in enumerate(self.features):
            x = nn.Dense(width, kernel_init=KERNEL_INIT, name=f'dense_{i}')(x)
            if i < len(self.features) - 1 or self.activate_final:
                x = nn.gelu(x)
                if self.layer_norm:
                    x = nn.LayerNorm(name=f'layer_norm_{i}')(x)
        return x
