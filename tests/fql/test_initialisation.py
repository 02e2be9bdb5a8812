"""Fresh parameters, against the bounds and variances of the reference's initialisers."""

import functools
import math

import jax
import numpy as np
import pytest

from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, IQLConfig, Spec
from fql.agents.registry import make_agent

STATES, IMAGES = Spec((7,), 3), Spec((8, 8, 9), 3)
ENCODER = EncoderConfig(size='impala_small')
SMALL_OUTPUTS = ('mean', 'log_std')
"""The output layers of Gaussian actors, whose scale is 0.01."""

CASES = {
    **{name: (config(hidden_dims=(64, 32)), STATES) for name, config in AGENT_CONFIGS.items()},
    'iql, learnt std': (IQLConfig(hidden_dims=(64, 32), const_std=False), STATES),
    'fql from images': (AGENT_CONFIGS['fql'](hidden_dims=(64, 32), encoder=ENCODER), IMAGES),
}


def limit_of(shape, scale):
    """Variance scaling, fan average, uniform; with scale 1 that is Xavier's (Glorot's) uniform."""
    *receptive, fan_in, fan_out = shape
    return math.sqrt(3 * scale / (math.prod(receptive) * (fan_in + fan_out) / 2))


@functools.cache
def fresh(case):
    """Fresh parameters by their path; an ensemble's members one by one."""
    config, spec = CASES[case]
    params = jax.jit(make_agent(config, spec).init_params)(jax.random.key(0))
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = tuple(key.key for key in keys)
        members = leaf if path[0] == 'critic' else [leaf]
        found |= {(*path[:-1], i, path[-1]): np.asarray(x) for i, x in enumerate(members)}
    return found


@pytest.mark.parametrize('case', CASES)
def test_kernels_are_uniform_with_the_references_scale(case):
    kernels = {path: leaf for path, leaf in fresh(case).items() if path[-1] == 'kernel'}
    assert any('conv' in name for path in kernels for name in map(str, path)) == ('images' in case)
    for path, kernel in kernels.items():
        scale = 0.01 if path[-3] in SMALL_OUTPUTS else 1.0
        relative = kernel / limit_of(kernel.shape, scale)
        assert np.abs(relative).max() <= 1 + 1e-6, path
        # The variance of U(-1, 1) is 1 / 3; the mean of n squares has a deviation of its own.
        deviation = math.sqrt((1 / 5 - 1 / 9) / kernel.size)
        assert abs(np.mean(relative**2) - 1 / 3) < 5 * deviation, path
    values = [kernel.ravel()[0] for kernel in kernels.values()]
    assert len(set(values)) == len(values), 'two layers have the same random numbers'


@pytest.mark.parametrize('case', CASES)
def test_all_other_parameters_start_at_zero_and_scales_at_one(case):
    for path, leaf in fresh(case).items():
        if path[-1] != 'kernel':
            assert path[-1] in ('bias', 'scale', 'log_stds', 'log_value'), path
            np.testing.assert_array_equal(leaf, 1.0 if path[-1] == 'scale' else 0.0)


def test_sacs_temperature_starts_at_one():
    assert np.exp(fresh('sac')['alpha', 0, 'log_value']) == 1
