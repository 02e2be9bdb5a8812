"""The split first layer against one of concatenated inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from encoders.mlp import KERNEL_INIT, MLP, SplitDense


def test_several_inputs_are_as_one_concatenated():
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [
        jax.random.normal(key, (5, width)) for key, width in zip(keys, (7, 2, 1), strict=True)
    ]
    layer = SplitDense(4, jnp.float32)
    variables = layer.init(jax.random.key(1), *inputs)
    plain = nn.Dense(4, kernel_init=KERNEL_INIT)
    whole = jnp.concatenate(inputs, axis=-1)
    # Also the same parameters, so that a run depends only on its seed.
    for ours, theirs in zip(
        jax.tree.leaves(variables),
        jax.tree.leaves(plain.init(jax.random.key(1), whole)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(
        layer.apply(variables, *inputs), plain.apply(variables, whole), rtol=1e-5, atol=1e-6
    )


def test_a_product_that_calls_share_is_computed_once():
    latents, actions = jnp.ones((8, 256)), jnp.ones((10, 8, 2))
    mlp = MLP((128, 2))
    variables = mlp.init(jax.random.key(0), latents, actions[0])

    def several_calls(variables, latents, actions):
        return sum(mlp.apply(variables, latents, x) for x in actions)

    def flops(count):
        lowered = jax.jit(several_calls).lower(variables, latents, actions[:count])
        return lowered.compile().cost_analysis()['flops']

    product = 2 * 8 * 256 * 128
    assert flops(1) > product
    assert flops(10) < 2 * product
