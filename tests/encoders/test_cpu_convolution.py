"""Convolutions and pooling in blocks against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.cpu_convolution import (
    blocked_convolve,
    blocked_convolve_and_pool,
    convolve,
    max_pool,
    pool_blocks,
    to_blocks,
)
from encoders.impala import ImpalaEncoder

SHAPES = [(2, 8, 6, 3), (1, 5, 4, 16), (1, 7, 9, 2), (1, 1, 2, 1)]


def plain_convolve_and_pool(x, kernel):
    return max_pool(convolve(x, kernel))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('ties', [False, True])
def test_same_as_plain_form(shape, ties):
    rng = np.random.default_rng(0)
    # Sums of few whole numbers are exact in either order, so that ties are ties in both forms.
    x = rng.integers(0, 2, shape) if ties else rng.normal(size=shape)
    kernel = (
        rng.integers(-1, 2, (3, 3, shape[-1], 5)) if ties else rng.normal(size=(3, 3, shape[-1], 5))
    )
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*shape[:3], 5)), jnp.float32)

    def result_and_gradients(form):
        def weighted(x, kernel):
            result = form(x, kernel)
            return (result * weights[:, : result.shape[1], : result.shape[2]]).sum(), result

        (_, result), grads = jax.value_and_grad(weighted, (0, 1), has_aux=True)(x, kernel)
        return result, *grads

    forms = (blocked_convolve, blocked_convolve_and_pool, convolve, plain_convolve_and_pool)
    results = jax.jit(lambda: [result_and_gradients(form) for form in forms])()
    for ours, expected in zip(results[0] + results[1], results[2] + results[3], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def blocked_max_pool(x):
    return pool_blocks(to_blocks(x, (x.shape[1] % 2, x.shape[2] % 2), fill=-jnp.inf))


@pytest.mark.parametrize(
    'shape', [(2, 8, 8, 3), (1, 7, 9, 2), (2, 5, 4, 1), (1, 1, 1, 1), (1, 2, 3, 2)]
)
@pytest.mark.parametrize('ties', [False, True])
def test_pooling_is_the_same_bit_for_bit(shape, ties):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    x = jnp.asarray(np.round(x) if ties else x, jnp.float32)
    weights = jnp.asarray(rng.normal(size=max_pool(x).shape), jnp.float32)

    def pooled_and_gradient(pool):
        pooled, vjp = jax.vjp(pool, x)
        return pooled, pool(x), vjp(weights)[0]

    ours, expected = jax.jit(
        lambda: (pooled_and_gradient(blocked_max_pool), pooled_and_gradient(max_pool)),
    )()
    np.testing.assert_array_equal(ours[0], expected[0])
    np.testing.assert_array_equal(ours[1], expected[1])
    np.testing.assert_allclose(ours[2], expected[2], rtol=1e-6, atol=1e-6)


def test_gradient_of_a_constant_image_goes_to_the_first_of_each_window():
    grad = jax.grad(lambda x: blocked_max_pool(x).sum())(jnp.zeros((1, 4, 4, 1)))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(grad[0, :, :, 0], expected)


@pytest.mark.parametrize('size', [16, 21])
def test_an_encoder_is_the_same_in_both_forms(size):
    encoder = ImpalaEncoder(stack_sizes=(4, 16), num_blocks=1, hidden_dims=(8,))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size + 1, 6), np.uint8)
    params = jax.jit(encoder.init)(jax.random.key(0), images)

    def latents_and_gradients(encoder):
        def loss(params):
            latents = encoder.apply(params, images)
            return (latents**2).sum(), latents

        grads, latents = jax.grad(loss, has_aux=True)(params)
        return jax.tree.leaves((latents, grads))

    blocked, plain = jax.jit(
        lambda: (latents_and_gradients(encoder), latents_and_gradients(encoder.clone(plain=True))),
    )()
    for ours, expected in zip(blocked, plain, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
