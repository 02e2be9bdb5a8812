"""Photometric augmentation of a batch's images, on the device, inside the training step.

Every sample gets its own changes, the same for all its frames, so that the observation and the
next one match. (The random shift is the data pipeline's.)
"""

from collections.abc import Mapping
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
from einops import rearrange

from fql.augmentation_config import AugmentationConfig
from fql.errors import FQLError

BLUR_SIGMA = (0.1, 1.0)
"""Range of the blur's standard deviation, in pixels."""
BLUR_RADIUS = 3
"""Half the width of the blur's kernel, in pixels."""
CUTOUT_SIZE = 0.25
"""Height and width of what is cut out, as a fraction of the image's."""

# Large, so that it differs from the numbers by which agents split the same key.
_STREAM = 0x617567


def check_augmentation(config: AugmentationConfig, frame_shapes: Any) -> None:
    """Raise FQLError if these frames, (h, w, c) or (d,), cannot be augmented as asked.

    Args:
        frame_shapes: a shape, or several by name.
    """
    shapes = frame_shapes.values() if isinstance(frame_shapes, Mapping) else [frame_shapes]
    images = [shape for shape in shapes if len(shape) == 3]
    if config.is_on and not images:
        raise FQLError('observations are vectors: set all augmentations (--brightness, ...) to 0')
    needs_rgb = {
        'saturation': config.saturation,
        'hue': config.hue,
        'grayscale-probability': config.grayscale_probability,
    }
    asked = [name for name, value in needs_rgb.items() if value]
    for *_, channels in images:
        if asked and channels != 3:
            raise FQLError(
                f'images have {channels} channels: set {", ".join(asked)} to 0 (RGB is needed)'
            )


def augment_frames(
    frames: Any, config: AugmentationConfig, key: jax.Array, step: jax.Array | int
) -> Any:
    """Augment the unique frames of a batch; return them untouched if nothing is on here.

    Args:
        frames: (b, t, h, w, c) uint8; or several by name, of which the images are augmented, each
            with its own draws.
        key: () of the run, `TrainState.key`.
        step: () the update that the batch is for; (key, step) determine every draw.

    Returns:
        (b, t, h, w, c) float32 in [0, 1], or `frames` themselves.
    """
    if not config.is_on:
        return frames
    key = jax.random.fold_in(jax.random.fold_in(key, step), _STREAM)
    if not isinstance(frames, Mapping):
        return _augment_images(key, frames, config)
    images = sorted(name for name, array in frames.items() if array.ndim == 5)
    return dict(frames) | {
        name: _augment_images(jax.random.fold_in(key, number), frames[name], config)
        for number, name in enumerate(images)
    }


def _augment_images(key: jax.Array, frames: jax.Array, config: AugmentationConfig) -> jax.Array:
    """The frames (b, t, h, w, c) uint8 of a batch, as float32 in [0, 1]."""
    keys = jax.random.split(key, len(frames))
    images = frames.astype(jnp.float32) / 255.0
    return jax.vmap(lambda key, sample: _augment_sample(key, sample, config))(keys, images)


def _augment_sample(key: jax.Array, frames: jax.Array, config: AugmentationConfig) -> jax.Array:
    """The frames (t, h, w, c) of one sample, float in [0, 1]."""
    # Each operation has its key whether or not the others are on.
    color_key, blur_key, cutout_key = jax.random.split(key, 3)
    # As one tall image, since contrast depends on the mean of the whole image.
    image = rearrange(frames, 't h w c -> (t h) w c')
    image = _jitter_colors(color_key, image, config)
    frames = rearrange(image, '(t h) w c -> t h w c', t=len(frames))
    if config.blur_probability:
        frames = _blur(blur_key, frames, config.blur_probability)
    if config.cutout_probability:
        frames = _cut_out(cutout_key, frames, config.cutout_probability)
    return frames


def _jitter_colors(key: jax.Array, image: jax.Array, config: AugmentationConfig) -> jax.Array:
    """Brightness, contrast, saturation, hue and grayscale of an image (h, w, c), in this order."""
    keys = jax.random.split(key, 5)
    if config.brightness:
        delta = _uniform(keys[0], -config.brightness, config.brightness)
        image = _clip(dm_pix.adjust_brightness(image, delta))
    if config.contrast:
        factor = _uniform(keys[1], 1 - config.contrast, 1 + config.contrast)
        image = _clip(dm_pix.adjust_contrast(image, factor))
    if config.saturation:
        factor = _uniform(keys[2], 1 - config.saturation, 1 + config.saturation)
        image = _clip(dm_pix.adjust_saturation(image, factor))
    if config.hue:
        turn = _uniform(keys[3], -config.hue, config.hue)
        image = _clip(dm_pix.adjust_hue(image, turn))
    if config.grayscale_probability:
        gray = dm_pix.rgb_to_grayscale(image, keep_dims=True)
        image = jnp.where(_coin(keys[4], config.grayscale_probability), gray, image)
    return image


def _blur(key: jax.Array, frames: jax.Array, probability: float) -> jax.Array:
    """With this probability, a Gaussian blur of all frames (t, h, w, c)."""
    coin_key, sigma_key = jax.random.split(key)
    blurred = gaussian_blur(frames, _uniform(sigma_key, *BLUR_SIGMA))
    return jnp.where(_coin(coin_key, probability), _clip(blurred), frames)


def gaussian_blur(frames: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Frames (t, h, w, c) convolved with a Gaussian of 2 * BLUR_RADIUS + 1 pixels, edge-padded.

    Computed as sums of shifted images: with a sigma for each sample, dm-pix convolves each channel
    of each image separately, which takes several times longer on CPU.
    """
    offsets = jnp.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = jax.nn.softmax(-(offsets**2) / (2 * sigma**2))
    padding = ((0, 0), (BLUR_RADIUS, BLUR_RADIUS), (BLUR_RADIUS, BLUR_RADIUS), (0, 0))
    blurred = jnp.pad(frames, padding, mode='edge')
    for axis in (1, 2):
        size = frames.shape[axis]
        blurred = sum(
            weight * jax.lax.slice_in_dim(blurred, start, start + size, axis=axis)
            for start, weight in enumerate(weights)
        )
    return blurred


def _cut_out(key: jax.Array, frames: jax.Array, probability: float) -> jax.Array:
    """With this probability, a black rectangle somewhere, in all frames (t, h, w, c) the same.

    Source: DeVries and Taylor 2017; dm-pix has no such operation.
    """
    coin_key, *place_keys = jax.random.split(key, 3)

    def cut_lines(key: jax.Array, size: int) -> jax.Array:
        length = round(CUTOUT_SIZE * size)
        first = jax.random.randint(key, (), 0, size - length + 1)
        lines = jnp.arange(size)
        return (lines >= first) & (lines < first + length)

    rows, columns = map(cut_lines, place_keys, frames.shape[1:3])
    is_cut = _coin(coin_key, probability) & rows[:, None, None] & columns[:, None]
    return jnp.where(is_cut, 0.0, frames)


def _uniform(key: jax.Array, low: float, high: float) -> jax.Array:
    return jax.random.uniform(key, minval=low, maxval=high)


def _coin(key: jax.Array, probability: float) -> jax.Array:
    return jax.random.uniform(key) < probability


def _clip(image: jax.Array) -> jax.Array:
    return jnp.clip(image, 0.0, 1.0)
