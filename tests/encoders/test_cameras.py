"""The encoder of several cameras and vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.cameras import VECTOR_FEATURES, CameraEncoder
from encoders.impala import ENCODERS

IMAGES = ENCODERS['impala_debug']


@pytest.fixture(scope='module')
def observations():
    rng = np.random.default_rng(0)
    return {
        'wrist': rng.integers(0, 256, (2, 8, 6, 1), np.uint8),
        'main': rng.integers(0, 256, (2, 12, 12, 6), np.uint8),
        'pose': rng.normal(size=(2, 3)).astype(np.float32),
        'gripper': rng.normal(size=(2, 1)).astype(np.float32),
    }


def test_cameras_side_by_side_then_the_vectors(observations):
    @jax.jit  # In one call: otherwise each operation would be compiled separately.
    def encode(observations):
        latents, variables = CameraEncoder(IMAGES).init_with_output(jax.random.key(0), observations)
        params = variables['params']
        alone = [
            IMAGES.apply({'params': params[f'camera_{name}']}, observations[name])
            for name in ('main', 'wrist')
        ]
        return latents, params, alone

    latents, params, alone = encode(observations)
    assert params.keys() == {'camera_main', 'camera_wrist', 'vectors'}
    size = IMAGES.hidden_dims[-1]
    for place, expected in enumerate(alone):
        part = latents[:, place * size : (place + 1) * size]
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)
    dense = params['vectors']['dense_0']
    joined = np.concatenate([observations['gripper'], observations['pose']], axis=1)
    expected = nn.gelu(joined @ dense['kernel'] + dense['bias'])
    np.testing.assert_allclose(latents[:, 2 * size :], expected, rtol=1e-5, atol=1e-6)
    assert expected.shape == (2, VECTOR_FEATURES)
    assert latents.dtype == jnp.float32


class Linear(nn.Module):
    """In place of an image encoder; compiles at once."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(8, name='dense')(images.reshape(len(images), -1) / 255)


def test_cameras_with_the_same_parameters(observations):
    """Latents and gradients are those of one encoder that is applied to each image."""
    images = Linear()
    shown = {
        name: np.random.default_rng(i).integers(0, 256, (2, 8, 6, 3), np.uint8)
        for i, name in enumerate(('left', 'right'))
    }
    shown['pose'] = observations['pose']
    shared = CameraEncoder(images, shared=True)

    @jax.jit
    def compare(shown):
        params = shared.init(jax.random.key(0), shown)['params']

        def alone(params, name):
            return images.apply({'params': params}, shown[name])

        def loss(params):
            return jnp.sum(jnp.sin(shared.apply({'params': params}, shown)))

        def loss_alone(params, name):
            return jnp.sum(jnp.sin(alone(params, name)))

        cameras = params['cameras']
        sides = ('left', 'right')
        return (
            params,
            shared.apply({'params': params}, shown),
            jnp.concatenate([alone(cameras, name) for name in sides], axis=-1),
            jax.grad(loss)(params)['cameras'],
            [jax.grad(loss_alone)(cameras, name) for name in sides],
        )

    params, latents, expected, gradient, gradients = compare(shown)
    assert params.keys() == {'cameras', 'vectors'}
    one = jax.eval_shape(images.init, jax.random.key(0), shown['left'])['params']
    assert jax.tree.map(jnp.shape, params['cameras']) == jax.tree.map(jnp.shape, one)
    assert latents.shape == (2, 2 * 8 + VECTOR_FEATURES)
    np.testing.assert_allclose(latents[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-6)
    total = jax.tree.map(jnp.add, *gradients)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), gradient, total
    )
    assert not np.allclose(gradients[0]['dense']['kernel'], 0)


def test_it_needs_no_vectors(observations):
    images = {name: observations[name] for name in ('wrist', 'main')}
    init = CameraEncoder(IMAGES).init_with_output
    latents, variables = jax.eval_shape(init, jax.random.key(0), images)
    assert latents.shape == (2, 2 * IMAGES.hidden_dims[-1])
    assert 'vectors' not in variables['params']
