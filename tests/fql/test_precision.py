"""bfloat16: close to float32, and used only where intended."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fql.agents.configs import EncoderConfig, FQLConfig
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.devices import one_device_mesh
from fql.runs.run_learner import batch_preparer, make_learner
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig

TOLERANCE = 0.02
"""Tolerance of each loss, relative to float32; one rounding to bfloat16 is up to 0.4 %."""


def spec(precision):
    agent = FQLConfig(
        hidden_dims=(64, 64),
        encoder=EncoderConfig(size='impala_debug'),
        flow_steps=2,
        precision=precision,
    )
    return RunSpec(TrainConfig(task='', frame_stack=1, agent=agent), (16, 16, 3), 'uint8', 2)


def start(spec):
    learner, mesh = make_learner(spec), one_device_mesh()
    step = make_train_step(learner, batch_preparer(spec), abstract_state(learner, mesh))
    return initial_state(learner, 0, mesh), step


@pytest.fixture(scope='module')
def arrays():
    rng = np.random.default_rng(0)
    return {
        'inputs': jnp.asarray(rng.integers(0, 256, (64, 2, 16, 16, 3), np.uint8)),
        'actions': jnp.asarray(rng.uniform(-1, 1, (64, 2)), jnp.float32),
        'rewards': -jnp.ones(64),
        'masks': jnp.ones(64),
    }


@pytest.mark.long
def test_losses_stay_near_those_of_float32(arrays):
    metrics, states = {}, {}
    for precision in ('float32', 'bfloat16'):
        state, step = start(spec(precision))
        states[precision], metrics[precision] = step(state, [arrays])
    for name in ('critic/loss', 'actor/bc_flow_loss', 'actor/distill_loss', 'loss'):
        exact, rounded = (np.asarray(metrics[p][name]) for p in ('float32', 'bfloat16'))
        np.testing.assert_allclose(rounded, exact, rtol=TOLERANCE, err_msg=name)
        assert (rounded != exact).any(), name
        assert rounded.dtype == np.float32
    # What is stored stays float32: parameters, their average, the optimiser's moments.
    for leaf in jax.tree.leaves(dataclasses.replace(states['bfloat16'], key=None)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_the_networks_compute_in_bfloat16(arrays):
    state, step = start(spec('bfloat16'))
    lowered = step.jitted.lower(*step.arguments(state, [arrays]))
    products = [
        line
        for line in lowered.as_text().splitlines()
        if 'stablehlo.dot_general' in line or 'stablehlo.convolution' in line
    ]
    assert len(products) > 20
    for line in products:
        assert line.split(':')[-1].count('bf16') == 3, line
