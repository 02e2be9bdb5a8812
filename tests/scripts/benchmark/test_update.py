"""The operations that `fql benchmark update` counts, and its reference mode's results."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fql.agents.base import Agent
from fql.agents.configs import FQLConfig
from fql.agents.fql import FQL
from fql.batch import batch_from_inputs
from fql.learner import Learner, make_optimizer
from fql.runs.run_learner import agent_of
from fql.settings.train_config import TrainConfig
from scripts.benchmark.update import (
    MODES,
    ReferenceFQL,
    image_spec,
    random_arrays,
    random_images,
    with_encoder,
)

CONFIG = TrainConfig(
    task='',
    batch_size=8,
    frame_stack=2,
    agent=FQLConfig(hidden_dims=(16,), flow_steps=1),
)
SIZE = 32


@pytest.fixture(scope='module')
def flops():
    modes = ('separate', 'shared', 'frozen', 'latents')
    return {mode: MODES[mode](CONFIG, SIZE).flops for mode in modes}


def encoder_flops(config):
    spec = image_spec(config, SIZE)
    agent = agent_of(spec)
    params = jax.jit(agent.init_params)(jax.random.key(0))
    images = random_images((config.batch_size, *spec.observation_shape))

    def encode(params, images):
        return agent.encoding.encode(params, 'critic', images)

    def forward_and_backward(params, images):
        return jax.vjp(lambda p: encode(p, images), params)[1](np.ones((8, 512), 'f'))

    forward = jax.jit(encode).lower(params, images).compile()
    both = jax.jit(forward_and_backward).lower(params, images).compile()
    return forward.cost_analysis()['flops'], both.cost_analysis()['flops']


@pytest.mark.long
def test_no_observation_is_encoded_twice(flops):
    forward, forward_and_backward = encoder_flops(CONFIG)
    # o with gradient, o' without; the rest is the heads' work.
    heads = flops['latents']
    assert flops['shared'] == pytest.approx(forward_and_backward + forward + heads, rel=0.05)
    assert flops['frozen'] == pytest.approx(2 * forward + heads, rel=0.05)
    # Three encoders on o, and on o' those of the target critic and of the one-step policy.
    assert flops['separate'] == pytest.approx(
        3 * forward_and_backward + 2 * forward + heads, rel=0.05
    )


@pytest.mark.long
def test_the_reference_mode_computes_the_same_update():
    config = with_encoder(CONFIG, sharing='separate')
    spec = image_spec(config, SIZE)
    states, losses = [], []
    for kind in (FQL, ReferenceFQL):
        agent: Agent = kind(config.agent, spec.shapes)
        learner = Learner(agent, make_optimizer(config.agent.lr, config.agent.encoder))
        batch = batch_from_inputs(random_arrays(agent, config, SIZE))
        state, metrics = jax.jit(
            lambda learner=learner, b=batch: learner.update(learner.init(0), b)
        )()
        states.append(dataclasses.replace(state, key=None))
        losses.append(float(metrics['loss']))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Adam's first step has the size of the learning rate, whatever the gradient's.
    for ours, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.long
def test_what_is_written(fql, assert_one_line, tmp_path):
    out = tmp_path / 'update.json'
    small = ('--image-size', 16, '--batch-size', 8, '--encoder', 'impala_debug', '--rounds', 1)
    small = (*small, '--hidden-dims', 8, '--frame-stack', 1)
    command = ('benchmark', 'update', *small, '--against', 'flow_steps=1', 'hidden-dims=[4]')
    done = fql(*command, '--json', out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (
        report['variants']['A']['gflop_per_update']
        > report['variants']['B']['gflop_per_update']
        > 0
    )
    assert 'x A' in done.stdout
    assert_one_line(fql(*command, '--json', out), 'exists')
    assert_one_line(fql('benchmark', 'update', *small, '--against', 'colour=1'), 'colour=1')
    assert_one_line(fql(*command, '--modes', 'shared', 'latents'), 'one mode')


@pytest.mark.long
@pytest.mark.parametrize('agent', ['iql', 'rebrac', 'qc_fql'])
def test_other_agents_and_modes_run(fql, agent):
    small = ('--image-size', 16, '--batch-size', 8, '--encoder', 'impala_debug', '--rounds', 1)
    modes = ('--modes', 'states', 'latents', 'on_device')
    done = fql('benchmark', 'update', *small, '--hidden-dims', 8, '--agent', agent, *modes)
    assert done.returncode == 0, done.stderr
    for mode in modes[1:]:
        assert mode in done.stdout
