"""Tests of every agent: frozen encoders and latents, bfloat16, actions, several devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, Spec
from fql.agents.registry import AGENTS, make_agent
from fql.batch import Batch, batch_from_inputs
from fql.learner import Learner, make_optimizer
from scripts.benchmark.update import random_columns

BATCH, STACK, ACTION_DIM = 8, 2, 5
SPEC = Spec((16, 16, 3 * STACK), ACTION_DIM)
QUICK = {'flow_steps': 2, 'num_samples': 3, 'horizon': 3}


def small(name, **encoder):
    config = AGENT_CONFIGS[name](
        hidden_dims=(8,), encoder=EncoderConfig(size='impala_debug', **encoder)
    )
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in QUICK.items() if k in fields})


def learner_of(config):
    return Learner(make_agent(config, SPEC), make_optimizer(config.lr, config.encoder))


def test_every_draw_of_an_update_has_a_key_of_its_own():
    """A uniform and a normal number from the same key are functions of each other."""
    config = dataclasses.replace(small('fql'), distillation='velocity', target_candidates=3)
    agent = make_agent(config, SPEC)
    zeros = jnp.zeros((BATCH, ACTION_DIM))
    draws = agent.sample_draws(jax.random.key(0), Batch(zeros, zeros, zeros, zeros, zeros))
    assert draws.next_action_noise.shape == (BATCH, 3, ACTION_DIM)
    uniform = {
        name: np.asarray(value if name.endswith('time') else jax.scipy.stats.norm.cdf(value))
        for name, value in draws._asdict().items()
    }
    for name, values in uniform.items():
        for other, others in uniform.items():
            if name < other:
                first, second = values.ravel()[:BATCH], others.ravel()[:BATCH]
                assert np.abs(first - second).min() > 1e-5, (name, other)


@pytest.mark.parametrize(
    'name',
    [name if name == 'fql' else pytest.param(name, marks=pytest.mark.long) for name in AGENTS],
)
def test_a_frozen_agent_trains_on_latents_in_bfloat16_and_acts_on_images(name):
    config = dataclasses.replace(
        small(name, mode='frozen', source='/e'), precision='bfloat16', actor_layer_norm=True
    )
    learner = learner_of(config)
    agent = learner.agent
    rng = np.random.default_rng(0)
    arrays = {
        'inputs': rng.normal(size=(BATCH, 2, 512)).astype(np.float16),
        **random_columns(agent, BATCH),
    }
    batch = batch_from_inputs(arrays, agent.horizon)
    assert batch.observations.shape == batch.next_observations.shape == (BATCH, 512)
    first = jax.jit(lambda: learner.init(0))()
    step = jax.jit(lambda state: learner.update(state, batch))
    state, metrics = step(first)
    state, metrics = step(state)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert not jax.tree.leaves(state.target_params['encoders'])
    jax.tree.map(np.testing.assert_array_equal, first.params['encoders'], state.params['encoders'])
    for head in agent.heads:
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), first.params[head], state.params[head]
        )
        assert any(jax.tree.leaves(moved)), head
    for leaf in jax.tree.leaves(state.params):
        assert leaf.dtype == jnp.float32

    images = jnp.asarray(rng.integers(0, 256, (3, *SPEC.observation_shape), np.uint8))
    for policy in agent.policies:
        act = jax.jit(lambda p, o, k, policy=policy: agent.sample_actions(p, o, k, policy))
        actions = act(state.params, images, jax.random.split(jax.random.key(0), 3))
        assert actions.shape == (3, agent.action_horizon, ACTION_DIM)
        assert np.abs(actions).max() <= 1
        # The actions for an observation do not depend on the rest of the batch.
        again = act(state.params, images[::-1], jax.random.split(jax.random.key(0), 3)[::-1])
        np.testing.assert_allclose(actions, again[::-1], atol=1e-5)


@pytest.mark.parametrize('name', ['qc_fql', pytest.param('qc', marks=pytest.mark.long)])
def test_what_lies_beyond_a_trajectorys_end_teaches_nothing(name):
    config = small(name)
    learner = learner_of(config)
    rng = np.random.default_rng(0)
    columns = random_columns(learner.agent, BATCH)
    columns['valid'] = np.ones((BATCH, 3), np.float32)
    columns['valid'][0, 1:] = 0
    images = rng.integers(0, 256, (2, BATCH, *SPEC.observation_shape), np.uint8)
    batch = Batch(observations=images[0], next_observations=images[1], **columns)
    state = jax.jit(lambda: learner.init(0))()
    gradient = jax.jit(lambda batch: learner.gradient(state, batch, learner.draws(state, batch))[0])

    def changed(row):
        # Not the actions: flow matching reads the whole chunk, as published.
        rewards, following = batch.rewards.copy(), batch.next_observations.copy()
        rewards[row, 1:] = 5.0
        following[row] = 0
        return batch._replace(rewards=rewards, next_observations=following)

    expected = gradient(batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient(changed(0)),
        expected,
    )
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), gradient(changed(1)), expected)
    assert any(jax.tree.leaves(differ))


DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from test_agents import AGENTS, BATCH, SPEC, STACK, batch_from_inputs, learner_of, small
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.devices import make_mesh, put_batch
from scripts.benchmark.update import random_columns, random_images

for name in AGENTS:
    config = small(name)
    learner = learner_of(config)
    horizon = learner.agent.horizon
    count = STACK + min(STACK, horizon)
    arrays = {
        'inputs': random_images((BATCH, count, 16, 16, 3)),
        **random_columns(learner.agent, BATCH),
    }
    losses = []
    for mesh in (make_mesh(1), make_mesh(8)):
        step = make_train_step(
            learner,
            lambda arrays, key, step, h=horizon: batch_from_inputs(arrays, h),
            abstract_state(learner, mesh),
        )
        state = initial_state(learner, 0, mesh)
        for _ in range(2):
            state, metrics = step(state, [put_batch(arrays, mesh)])
        losses.append(float(metrics['loss'][0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, err_msg=name)
    print(name)
"""


@pytest.mark.long
def test_eight_devices_give_the_losses_of_one(run_python, monkeypatch, request):
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
    done = run_python(DEVICES, request.path.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(AGENTS)
