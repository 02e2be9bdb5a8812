"""The fast gradient of max pooling against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.pooling import fast_max_pool, max_pool, plain_max_pool


@pytest.mark.parametrize(
    'shape', [(2, 8, 8, 3), (1, 7, 9, 2), (2, 5, 4, 1), (1, 1, 1, 1), (1, 2, 3, 2)]
)
@pytest.mark.parametrize('ties', [False, True])
def test_same_as_plain_form(shape, ties):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    x = jnp.asarray(np.round(x) if ties else x, jnp.float32)
    pooled, vjp = jax.vjp(plain_max_pool, x)
    cotangent = jnp.asarray(rng.normal(size=pooled.shape), jnp.float32)
    expected = vjp(cotangent)[0]
    for pool in (fast_max_pool, max_pool):
        ours, vjp = jax.vjp(pool, x)
        np.testing.assert_array_equal(ours, pooled)
        np.testing.assert_array_equal(pool(x), pooled)
        np.testing.assert_allclose(vjp(cotangent)[0], expected, rtol=1e-6, atol=1e-6)


def test_gradient_of_a_constant_image_goes_to_the_first_of_each_window():
    grad = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 4, 4, 1)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(grad[0, :, :, 0], expected)
