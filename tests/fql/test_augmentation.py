"""Augmentations against their definitions in NumPy, and their random draws."""

import jax
import numpy as np
import pytest

from fql.augmentation import (
    BLUR_RADIUS,
    BLUR_SIGMA,
    CUTOUT_SIZE,
    augment_frames,
    check_augmentation,
)
from fql.augmentation_config import AugmentationConfig
from fql.errors import FQLError

SAMPLES, TIMES, HEIGHT, WIDTH = 12, 3, 12, 16
KEY = jax.random.key(3)
EACH = {
    'brightness': 0.3,
    'contrast': 0.5,
    'saturation': 0.5,
    'hue': 0.2,
    'grayscale_probability': 0.5,
    'blur_probability': 0.5,
    'cutout_probability': 0.5,
}


def augment(frames, key=KEY, step=0, **settings):
    config = AugmentationConfig(**settings)
    return np.asarray(jax.jit(augment_frames, static_argnums=1)(frames, config, key, step))


@pytest.fixture
def frames():
    shape = (SAMPLES, TIMES, HEIGHT, WIDTH, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def still(frames):
    """One image in all samples and at all times."""
    return np.broadcast_to(frames[0, 0], frames.shape)


def test_off_adds_nothing(frames):
    assert augment_frames(frames, AugmentationConfig(), KEY, 0) is frames
    jaxpr = jax.make_jaxpr(lambda x: augment_frames(x, AugmentationConfig(), KEY, 0))(frames)
    assert not jaxpr.eqns


def test_brightness_adds_a_number(frames):
    images = frames / 255.0
    out = augment(frames, brightness=0.3)
    deltas = []
    for image, got in zip(images, out, strict=True):
        inside = (got > 0.01) & (got < 0.99)
        deltas.append(np.median((got - image)[inside]))
        np.testing.assert_allclose(got, np.clip(image + deltas[-1], 0, 1), atol=1e-5)
    assert np.abs(deltas).max() <= 0.3
    assert np.ptp(deltas) > 0.2


def test_contrast_scales_about_the_mean(frames):
    images = frames / 255.0
    out = augment(frames, contrast=0.5)
    factors = []
    for image, got in zip(images, out, strict=True):
        mean = image.mean(axis=(0, 1, 2))
        usable = (got > 0.01) & (got < 0.99) & (np.abs(image - mean) > 0.1)
        factors.append(np.median(((got - mean) / (image - mean))[usable]))
        expected = np.clip((image - mean) * factors[-1] + mean, 0, 1)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(np.array(factors) - 1).max() <= 0.5
    assert np.ptp(factors) > 0.3


def test_saturation_moves_colours_to_or_from_their_maximum(frames):
    images = frames / 255.0
    out = augment(frames, saturation=0.5)
    value = images.max(axis=-1)
    np.testing.assert_allclose(out.max(axis=-1), value, atol=1e-5)
    for image, got, high in zip(images, out, value, strict=True):
        before = 1 - image.min(axis=-1) / np.maximum(high, 1e-9)
        after = 1 - got.min(axis=-1) / np.maximum(high, 1e-9)
        usable = (before > 0.1) & (after < 0.99) & (high > 0.1)
        factor = np.median(after[usable] / before[usable])
        assert 0.5 <= factor <= 1.5
        np.testing.assert_allclose(
            after[high > 0.1], np.clip(before * factor, 0, 1)[high > 0.1], atol=1e-4
        )


def test_hue_keeps_maximum_and_minimum(frames):
    images = frames / 255.0
    out = augment(frames, hue=0.2)
    np.testing.assert_allclose(out.max(axis=-1), images.max(axis=-1), atol=1e-5)
    np.testing.assert_allclose(out.min(axis=-1), images.min(axis=-1), atol=1e-5)
    # Red turned by a part of the circle: the next two primaries lie at one and two thirds of it.
    red = np.zeros_like(frames)
    red[..., 0] = 255
    turned = augment(red, hue=0.2)
    turns = np.where(turned[..., 1] > 0, turned[..., 1], -turned[..., 2]) / 6  # below a sixth
    sixth = np.abs(turns) < 1 / 6 - 1e-3
    assert sixth.any()
    np.testing.assert_allclose(turned[sixth][:, 0], 1, atol=1e-5)
    assert turns.min() < 0 < turns.max()


def test_grayscale_is_the_luma(frames):
    images = frames / 255.0
    luma = images @ [0.2989, 0.587, 0.114]
    out = augment(frames, grayscale_probability=0.5)
    is_gray = np.ptp(out, axis=-1).max(axis=(1, 2, 3)) == 0
    assert 0 < is_gray.sum() < SAMPLES
    expected = np.where(is_gray[:, None, None, None, None], luma[..., None], images)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_blur_is_gaussian_and_keeps_borders(frames):
    white = np.full_like(frames, 255)
    np.testing.assert_allclose(augment(white, blur_probability=1), 1, atol=1e-5)
    dot = np.zeros_like(frames)
    row, column = HEIGHT // 2, WIDTH // 2
    dot[:, :, row, column] = 255
    out = augment(dot, blur_probability=1)
    offsets = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    for got in out[:, 0, :, :, 0]:
        peak, beside = got[row, column], got[row, column + 1]
        sigma = np.sqrt(0.5 / np.log(peak / beside)) if beside > 1e-20 else BLUR_SIGMA[0]
        assert BLUR_SIGMA[0] <= sigma * 1.001
        assert sigma <= BLUR_SIGMA[1] * 1.001
        line = np.exp(-(offsets**2) / (2 * sigma**2))
        expected = np.zeros((HEIGHT, WIDTH))
        along = slice(row - BLUR_RADIUS, row + BLUR_RADIUS + 1)
        across = slice(column - BLUR_RADIUS, column + BLUR_RADIUS + 1)
        expected[along, across] = np.outer(line, line) / line.sum() ** 2
        np.testing.assert_allclose(got, expected, atol=1e-4)
    is_blurred = augment(dot, blur_probability=0.5)[:, 0, row, column, 0] < 1
    assert 0 < is_blurred.sum() < SAMPLES


def test_cutout_blackens_a_rectangle_within_the_image(frames):
    frames = np.maximum(frames, 1)
    out = augment(frames, cutout_probability=0.5)
    is_black = (out == 0).all(axis=-1)
    np.testing.assert_allclose(out[~is_black], (frames / 255.0)[~is_black], atol=1e-6)
    height, width = round(CUTOUT_SIZE * HEIGHT), round(CUTOUT_SIZE * WIDTH)
    places = set()
    for mask in is_black[:, 0]:
        assert mask.sum() in (0, height * width)
        if mask.any():
            (top, left), (bottom, right) = np.argwhere(mask)[[0, -1]]
            assert (bottom - top + 1, right - left + 1) == (height, width)
            places.add((top, left))
    assert len(places) > 1
    assert 0 < is_black.any(axis=(1, 2, 3)).sum() < SAMPLES


@pytest.mark.parametrize('settings', [{name: value} for name, value in EACH.items()] + [EACH])
def test_draws(still, settings):
    """The same for all frames of a sample, different between samples; from (key, step) alone."""
    out = augment(still, **settings)
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 1
    assert np.array_equal(out, np.broadcast_to(out[:, :1], out.shape))
    assert len(np.unique(out.reshape(SAMPLES, -1), axis=0)) > 1
    assert np.array_equal(out, augment(still, **settings))
    assert not np.array_equal(out, augment(still, step=1, **settings))
    assert not np.array_equal(out, augment(still, key=jax.random.key(4), **settings))


def test_draws_of_one_operation_do_not_depend_on_another(still):
    alone = augment(still, cutout_probability=0.5) == 0
    together = augment(np.maximum(still, 1), cutout_probability=0.5, blur_probability=0.5) == 0
    assert np.array_equal(alone.all(axis=-1), together.all(axis=-1))


@pytest.mark.parametrize(
    ('shape', 'settings', 'message'),
    [
        ((7,), {'brightness': 0.1}, 'vectors'),
        ((8, 8, 1), {'hue': 0.1, 'blur_probability': 1.0}, r'1 channels: set hue to 0'),
        ((8, 8, 4), {'grayscale_probability': 0.1}, '4 channels: set grayscale-probability'),
    ],
)
def test_what_cannot_be_augmented_is_refused(shape, settings, message):
    check_augmentation(AugmentationConfig(), shape)
    with pytest.raises(FQLError, match=message):
        check_augmentation(AugmentationConfig(**settings), shape)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channel_counts(frames, channels):
    settings = {'brightness': 0.3, 'contrast': 0.3, 'blur_probability': 1, 'cutout_probability': 1}
    check_augmentation(AugmentationConfig(**settings), (HEIGHT, WIDTH, channels))
    images = frames[..., :1].repeat(channels, axis=-1)
    assert augment(images, **settings).shape == images.shape


def test_of_several_observations_each_image_has_draws_of_its_own(frames):
    """Vectors stay as they are."""
    config = AugmentationConfig(brightness=0.3)
    vectors = np.ones((SAMPLES, TIMES, 4), np.float32)
    shown = {'state': vectors, 'wrist': frames[:, :, :8], 'main': frames}
    out = jax.jit(augment_frames, static_argnums=1)(shown, config, KEY, 0)
    assert out.keys() == shown.keys()
    np.testing.assert_array_equal(out['state'], vectors)
    deltas = {}
    for name in ('main', 'wrist'):
        change = np.asarray(out[name]) - shown[name] / 255.0
        inside = (out[name] > 0.01) & (out[name] < 0.99)
        deltas[name] = np.array([np.median(c[i]) for c, i in zip(change, inside, strict=True)])
        assert np.abs(deltas[name]).max() <= 0.3
        assert np.ptp(deltas[name]) > 0.2
    assert np.abs(deltas['main'] - deltas['wrist']).max() > 0.1


def test_what_several_observations_cannot_have():
    config = AugmentationConfig(hue=0.1)
    check_augmentation(config, {'main': (8, 8, 3), 'state': (4,)})
    with pytest.raises(FQLError, match='images have 1 channels: set hue to 0'):
        check_augmentation(config, {'main': (8, 8, 3), 'depth': (8, 8, 1)})
    with pytest.raises(FQLError, match='observations are vectors'):
        check_augmentation(config, {'pose': (3,), 'state': (4,)})
