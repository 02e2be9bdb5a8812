"""Several cameras and vectors to one latent vector."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from encoders.mlp import MLP

Shapes = Any
"""Of one image, (h, w, c); or of several arrays by name, (h, w, c) of images, (d,) of vectors."""

VECTOR_FEATURES = 64
"""Number of features of all vectors together; as in SERL (Luo et al. 2024)."""


def observation_encoder(
    image_encoder: nn.Module,
    shapes: Shapes,
    cameras: str = 'separate',
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """The encoder of observations of these shapes: the image encoder, or one of several arrays.

    Args:
        cameras: 'separate' or 'shared', see `CameraEncoder`.
        dtype: of the vectors' computation.
    """
    if isinstance(shapes, Mapping):
        return CameraEncoder(image_encoder, cameras == 'shared', dtype)
    return image_encoder


def abstract_observations(shapes: Shapes, size: Any, frame_stack: int = 1) -> Any:
    """Shapes and dtypes of a batch of `size` observations: images uint8, vectors float32.

    Args:
        frame_stack: how many observations of these shapes are stacked along the last axis.
    """

    def of(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        *leading, last = shape
        dtype = jnp.uint8 if leading else jnp.float32
        return jax.ShapeDtypeStruct((size, *leading, last * frame_stack), dtype)

    if isinstance(shapes, Mapping):
        return {name: of(shape) for name, shape in shapes.items()}
    return of(shapes)


def blank_observations(shapes: Shapes, frame_stack: int = 1) -> Any:
    """One observation of zeros, to initialise an encoder with; see `abstract_observations`."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        abstract_observations(shapes, 1, frame_stack),
    )


def latent_size(encoder: nn.Module, shapes: Shapes) -> int:
    """Width of the latents of observations of these shapes."""
    observations = abstract_observations(shapes, 1)
    latents, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), observations)
    return int(latents.shape[-1])


class CameraEncoder(nn.Module):
    """Image encoders for the cameras and a dense layer for the vectors, outputs concatenated.

    Vectors pass through Dense and GELU, as at the end of each camera's encoder, so that the heads
    read features of one kind. There is no LayerNorm: it removes the scale of its input, and a
    vector of one number, such as a gripper's opening, would keep only its sign.

    Attributes:
        image_encoder: images (b, h, w, c) to latents; each camera has its own parameters.
        shared: all cameras, whose images are of one shape, have the same parameters.
        dtype: of the computation; parameters are float32.
    """

    image_encoder: nn.Module
    shared: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, observations: Mapping[str, jax.Array]) -> jax.Array:
        """Encode observations, arrays by name, in the order of the names.

        Args:
            observations: images (b, h, w, c), as the image encoder takes them, of any sizes; and
                vectors (b, d) float.

        Returns:
            Latents, (b, cameras * latents of one + VECTOR_FEATURES if there are vectors) float32.
        """
        names = sorted(observations)
        keys = {
            name: 'cameras' if self.shared else f'camera_{name}'
            for name in names
            if observations[name].ndim == 4
        }
        encoders = {key: self.image_encoder.copy(name=key) for key in dict.fromkeys(keys.values())}
        latents = [encoders[key](observations[name]) for name, key in keys.items()]
        vectors = [observations[name] for name in names if observations[name].ndim == 2]
        if vectors:
            mlp = MLP((VECTOR_FEATURES,), activate_final=True, dtype=self.dtype, name='vectors')
            latents.append(mlp(*vectors))
        return jnp.concatenate(latents, axis=-1)
