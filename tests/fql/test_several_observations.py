"""Agents on observations of several arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.cameras import abstract_observations
from encoders.leaves import tree_digest
from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig, Spec
from fql.agents.registry import make_agent
from fql.batch import Batch, batch_from_inputs
from fql.learner import Learner, make_optimizer

SHAPES = {'main': (8, 8, 3), 'wrist': (6, 4, 1), 'state': (5,)}
SPEC = Spec(SHAPES, 2)
SMALL = {'hidden_dims': (8,), 'encoder': EncoderConfig('impala_debug')}


def batch_of(agent, size=4):
    """Shapes of a batch."""
    steps = (size,) if agent.horizon == 1 else (size, agent.horizon)
    numbers = jax.ShapeDtypeStruct(steps, jnp.float32)
    actions = jax.ShapeDtypeStruct((*steps, 2), jnp.float32)
    observations = abstract_observations(agent.spec.observation_shape, size)
    needed = {'valid': numbers, 'next_actions': actions, 'next_actions_valid': numbers}
    return Batch(
        observations,
        actions,
        numbers,
        numbers,
        observations,
        **{name: needed[name] for name in agent.needs},
    )


QUICK = {('fql', 'separate'), ('qc_fql', 'shared')}


@pytest.mark.parametrize(
    ('name', 'sharing'),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.long)
        for case in itertools.product(AGENT_CONFIGS, ('shared', 'separate'))
    ],
)
def test_every_agent_takes_them(name, sharing):
    config = AGENT_CONFIGS[name](
        hidden_dims=(8,), encoder=EncoderConfig('impala_debug', sharing=sharing)
    )
    agent = make_agent(config, SPEC)
    learner = Learner(agent, make_optimizer(config.lr, config.encoder))
    state = jax.eval_shape(lambda: learner.init(0))
    after, _ = jax.eval_shape(learner.update, state, batch_of(agent))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
        lambda leaf: leaf.shape, state
    )
    for encoder in state.params['encoders'].values():
        assert encoder.keys() == {'camera_main', 'camera_wrist', 'vectors'}
    noise = jax.ShapeDtypeStruct((4, *agent.noise_shape), jnp.float32)
    for policy in agent.policies:
        actions = jax.eval_shape(
            lambda *given, policy=policy: agent.act(*given, policy),
            state.params,
            batch_of(agent).observations,
            noise,
        )
        assert actions.shape == (4, agent.action_horizon, 2)


def test_several_vectors_are_one():
    """As if the user had concatenated them, in the order of their names."""
    agents = [
        make_agent(FQLConfig(**SMALL), spec)
        for spec in (
            Spec({'pose': (3,), 'gripper': (1,)}, 2),
            Spec((4,), 2),
        )
    ]
    several, joined = (jax.jit(agent.init_params)(jax.random.key(0)) for agent in agents)
    assert tree_digest(several) == tree_digest(joined)
    rng = np.random.default_rng(0)
    shown = {name: rng.normal(size=(4, n)).astype('f') for name, n in (('pose', 3), ('gripper', 1))}
    one = np.concatenate([shown['gripper'], shown['pose']], axis=1)
    noise = rng.normal(size=(4, 2)).astype('f')
    found, expected = (
        jax.jit(agent.act, static_argnums=3)(joined, observations, noise, 'one_step')
        for agent, observations in zip(agents, (shown, one), strict=True)
    )
    np.testing.assert_array_equal(found, expected)


def test_stacks_of_each_array():
    rng = np.random.default_rng(0)
    frames = {
        'main': rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8),
        'state': rng.normal(size=(2, 3, 5)),
    }
    nothing = dict.fromkeys(('actions', 'rewards', 'masks'))
    batch = batch_from_inputs({'inputs': frames, **nothing})
    for name, array in frames.items():
        for stack, first in ((batch.observations, 0), (batch.next_observations, 1)):
            expected = np.concatenate([array[:, first], array[:, first + 1]], axis=-1)
            np.testing.assert_array_equal(stack[name], expected)
