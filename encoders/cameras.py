"""Several cameras and vectors to one latent vector."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.mlp import MLP

VECTOR_FEATURES = 64
"""Features that all vectors together become; as many as in SERL (Luo et al. 2024)."""


class CameraEncoder(nn.Module):
    """An encoder for each camera, and a dense layer for the vectors; their outputs side by side.

    Vectors pass Dense and GELU, which is what each camera's encoder ends with, so that the heads
    read features of one kind. There is no LayerNorm: it takes the length from what it normalises,
    and of a vector of one number, such as a gripper's opening, would leave the sign.

    Attributes:
        image_encoder: images (b, h, w, c) to latents; each camera has parameters of its own.
        dtype: of the computation; parameters are float32.
    """

    image_encoder: nn.Module
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, observations: Mapping[str, jax.Array]) -> jax.Array:
        """Encodes observations, arrays by name, in the order of the names.

        Args:
            observations: images (b, h, w, c), as the image encoder takes them, of any sizes; and
                vectors (b, d) float.

        Returns:
            Latents, (b, cameras * latents of one + VECTOR_FEATURES if there are vectors) float32.
        """
        names = sorted(observations)
        latents = [
            self.image_encoder.copy(name=f'camera_{name}')(observations[name])
            for name in names
            if observations[name].ndim == 4
        ]
        vectors = [observations[name] for name in names if observations[name].ndim == 2]
        if vectors:
            mlp = MLP((VECTOR_FEATURES,), activate_final=True, dtype=self.dtype, name='vectors')
            latents.append(mlp(*vectors))
        return jnp.concatenate(latents, axis=-1)
