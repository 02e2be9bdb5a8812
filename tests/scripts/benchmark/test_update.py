"""The work that `fql benchmark update` counts, and what its reference mode computes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fql.agent import agent_networks, initial_state
from fql.update import update

from fql.batch import batch_from_frames
from fql.devices import one_device_mesh
from fql.training.config import AgentConfig, TrainConfig
from scripts.benchmark.update import (
    MODES,
    ReferenceNetworks,
    random_images,
    random_vectors,
    run_spec,
    with_agent,
)

CONFIG = TrainConfig(
    task='',
    batch_size=8,
    frame_stack=2,
    agent=AgentConfig(encoder='impala_small', hidden_dims=(16,), flow_steps=1),
)
SIZE = 32


@pytest.fixture(scope='module')
def flops():
    return {mode: make(CONFIG, SIZE).flops for mode, make in MODES.items()}


def encoder_flops(config):
    spec = run_spec(config, SIZE)
    networks = agent_networks(spec)
    params = initial_state(spec, one_device_mesh()).params['encoders']['shared']
    images = random_images((config.batch_size, *spec.observation_shape))

    def forward_and_backward(params, images):
        return jax.vjp(lambda p: networks.encode(p, images), params)[1](np.ones((8, 512), 'f'))

    forward = jax.jit(networks.encode).lower(params, images).compile()
    both = jax.jit(forward_and_backward).lower(params, images).compile()
    return forward.cost_analysis()['flops'], both.cost_analysis()['flops']


@pytest.mark.long
def test_no_observation_is_encoded_twice(flops):
    forward, forward_and_backward = encoder_flops(CONFIG)
    # o with gradient, o' without; what is left is the heads' work.
    heads = flops['latents']
    assert flops['shared'] == pytest.approx(forward_and_backward + forward + heads, rel=0.05)
    assert flops['frozen'] == pytest.approx(2 * forward + heads, rel=0.05)
    # Three encoders on o, and on o' those of the target critic and of the one-step policy.
    assert flops['separate'] == pytest.approx(
        3 * forward_and_backward + 2 * forward + heads, rel=0.05
    )


@pytest.mark.long
def test_the_reference_mode_computes_the_same_update():
    config = with_agent(CONFIG, encoder_sharing='separate')
    spec = run_spec(config, SIZE)
    networks = agent_networks(spec)
    arrays = {'frames': random_images((8, 3, SIZE, SIZE, 3)), **random_vectors(8)}
    states, losses = [], []
    for kind in (networks, ReferenceNetworks(**vars(networks))):
        state, metrics = jax.jit(
            lambda state, kind=kind: update(kind, config.agent, state, batch_from_frames(arrays))
        )(initial_state(spec, one_device_mesh()))
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
    assert report['ways']['A']['gflop_per_update'] > report['ways']['B']['gflop_per_update'] > 0
    assert 'x A' in done.stdout
    assert_one_line(fql(*command, '--json', out), 'exists')
    assert_one_line(fql('benchmark', 'update', *small, '--against', 'colour=1'), 'colour=1')
