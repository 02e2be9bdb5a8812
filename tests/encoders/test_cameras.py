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


def test_it_needs_no_vectors(observations):
    images = {name: observations[name] for name in ('wrist', 'main')}
    init = CameraEncoder(IMAGES).init_with_output
    latents, variables = jax.eval_shape(init, jax.random.key(0), images)
    assert latents.shape == (2, 2 * IMAGES.hidden_dims[-1])
    assert 'vectors' not in variables['params']
