"""Reconstruction of the images; an autoencoder, as a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from encoders.mlp import KERNEL_INIT, MLP
from encoders.pretraining.base import (
    CODE_SIZE,
    Metrics,
    Objective,
    ObjectiveHead,
    Params,
    Windows,
    feature_scale,
)

PATCH = 8
"""Height and width of the patches that are masked and decoded, in pixels."""


class PatchDecoder(nn.Module):
    """Decoder of latents to images: an MLP to a vector for each patch, a layer to its pixels.

    Attributes:
        hidden_dims: widths of the hidden layers.
        image_shape: (h, w, c).
    """

    hidden_dims: Sequence[int]
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """(b, d) float -> (b, h, w, c) float."""
        height, width, channels = self.image_shape
        rows, columns = -(-height // PATCH), -(-width // PATCH)
        x = MLP((*self.hidden_dims, rows * columns * CODE_SIZE), name='mlp')(latents)
        x = rearrange(nn.gelu(x), 'b (r q d) -> b r q d', r=rows, q=columns)
        x = nn.Dense(PATCH * PATCH * channels, kernel_init=KERNEL_INIT, name='pixels')(x)
        x = rearrange(x, 'b r q (i j c) -> b (r i) (q j) c', i=PATCH, j=PATCH)
        return x[:, :height, :width]


@dataclass(frozen=True)
class Reconstruction(Objective):
    """`mean((decoder(z_t) - o_t)^2)` over all pixels, in [0, 1]: an autoencoder, as a baseline.

    For observations of one image.

    With `mask_ratio` above 0, some patches of the encoder's images are black, drawn for each sample
    and the same for all its frames: He et al. 2022, 'Masked Autoencoders' (arXiv 2111.06377), with
    another encoder and decoder.
    """

    mask_ratio: float = 0.0
    """Fraction of the patches that the encoder does not see."""

    @property
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """See `Objective`."""
        decoder = PatchDecoder(self.hidden_dims, self.observation_shape)
        return {'decoder': ObjectiveHead(decoder, self.latent_size)}

    def loss(
        self,
        params: Params,
        target_params: Params,
        windows: Windows,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        del target_params, step
        images = windows.observations
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255.0
        seen = mask_patches(key, images, self.mask_ratio) if self.mask_ratio else images
        latents = self.encode(params, seen)
        decoded = self.head(params, 'decoder', latents)
        return jnp.mean((decoded - images) ** 2), feature_scale(latents)


def mask_patches(key: jax.Array, images: jax.Array, ratio: float) -> jax.Array:
    """Images (b, h, w, c) in which each patch is black with probability `ratio`."""
    count, height, width, _ = images.shape
    grid = (count, -(-height // PATCH), -(-width // PATCH))
    is_seen = jax.random.uniform(key, grid) >= ratio
    pixels = repeat(is_seen, 'b r q -> b (r i) (q j) 1', i=PATCH, j=PATCH)
    return images * pixels[:, :height, :width]
