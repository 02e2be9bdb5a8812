"""Shapes, named sizes and input types of the encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.impala import ENCODERS, ImpalaEncoder


@pytest.mark.parametrize(
    ('name', 'latent_size', 'parameters'),
    [
        # Counted by hand: stacks of 3x3 convolutions on 9 channels, then Dense from 8x8x32 (or
        # 16x16x4, 8x8x128) to the latents.
        ('impala_debug', 512, 328 + 2 * 148 + 3 * 148 + 1024 * 512 + 512),
        ('impala_small', 512, 1312 + 2 * 2320 + 4640 + 2 * 9248 + 3 * 9248 + 2048 * 512 + 512),
        ('impala', 512, 1312 + 4 * 2320 + 4640 + 4 * 9248 + 5 * 9248 + 2048 * 512 + 512),
        (
            'impala_large',
            1024,
            5248 + 4 * 36928 + 73856 + 4 * 147584 + 5 * 147584 + 8192 * 1024 + 1024,
        ),
    ],
)
def test_named_sizes(name, latent_size, parameters):
    encoder = ENCODERS[name]
    images = jax.ShapeDtypeStruct((2, 64, 64, 9), jnp.uint8)
    latents, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    assert latents.shape == (2, latent_size)
    assert latents.dtype == jnp.float32
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_uint8_means_255_and_float_means_1():
    encoder = ImpalaEncoder(stack_sizes=(4,), hidden_dims=(8,))
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), np.uint8)
    variables = encoder.init(jax.random.key(0), images)
    scaled = jnp.asarray(images, jnp.float32) / 255
    np.testing.assert_allclose(
        encoder.apply(variables, images), encoder.apply(variables, scaled), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(TypeError, match='int32'):
        encoder.apply(variables, images.astype(np.int32))
