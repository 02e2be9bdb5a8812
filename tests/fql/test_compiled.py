"""Several updates in one call against the same updates in more calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.leaves import tree_digest
from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig
from fql.compiled import (
    SHORT_UPDATES_PER_CALL,
    abstract_state,
    initial_state,
    make_train_step,
    updates_per_call,
)
from fql.devices import one_device_mesh
from fql.runs.run_learner import batch_preparer, make_learner
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig

SPEC = RunSpec(
    config=TrainConfig(
        task='',
        frame_stack=2,
        agent=FQLConfig(
            hidden_dims=(16,), flow_steps=1, encoder=EncoderConfig(size='impala_debug')
        ),
    ),
    observation_shape=(16, 16, 6),
    observation_dtype='uint8',
    action_dim=2,
)


def random_arrays(seed):
    rng = np.random.default_rng(seed)
    return {
        'inputs': jnp.asarray(rng.integers(0, 256, (8, 3, 16, 16, 3), np.uint8)),
        'actions': jnp.asarray(rng.uniform(-1, 1, (8, 2)), jnp.float32),
        'rewards': jnp.asarray(rng.uniform(-1, 0, 8), jnp.float32),
        'masks': jnp.asarray(rng.integers(0, 2, 8), jnp.float32),
    }


def test_how_many_updates_a_call_makes_changes_no_bit(monkeypatch, options_of_training):
    monkeypatch.setattr('fql.compiled.compiler_options', lambda: options_of_training)
    # As with several updates per call: single updates, before something is due, are loops too.
    monkeypatch.setattr('jax.default_backend', lambda: 'gpu')
    batches = [random_arrays(seed) for seed in range(4)]
    learner, mesh = make_learner(SPEC), one_device_mesh()
    train_step = make_train_step(learner, batch_preparer(SPEC), abstract_state(learner, mesh), 4)
    states = [initial_state(learner, 0, mesh) for _ in range(3)]
    losses = []
    for arrays in (batches[:1], batches[1:2], batches[2:]):
        states[0], metrics = train_step(states[0], arrays)
        losses.append(np.asarray(metrics['loss']))
    states[1], metrics = train_step(states[1], batches)
    assert tree_digest(states[0]) == tree_digest(states[1])
    np.testing.assert_array_equal(np.concatenate(losses), metrics['loss'])
    assert int(states[1].step) == len(batches)
    # The comparison can fail: another order is another state.
    states[2], _ = train_step(states[2], batches[::-1])
    assert tree_digest(states[2]) != tree_digest(states[0])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(states[1].params))


@pytest.mark.long
@pytest.mark.parametrize('name', ['fql', 'rebrac'])
def test_so_it_is_on_vectors_where_calls_make_many_updates_on_cpus_too(
    monkeypatch, options_of_training, name
):
    monkeypatch.setattr('fql.compiled.compiler_options', lambda: options_of_training)
    assert updates_per_call(0, has_convolutions=False) == SHORT_UPDATES_PER_CALL
    agent = AGENT_CONFIGS[name](hidden_dims=(16, 16))
    spec = RunSpec(TrainConfig(task='', frame_stack=1, agent=agent), (7,), 'float32', 2)
    learner, mesh = make_learner(spec), one_device_mesh()
    rng = np.random.default_rng(0)
    batches = [
        {
            'inputs': jnp.asarray(rng.normal(size=(8, 2, 7)), jnp.float32),
            'actions': jnp.asarray(rng.uniform(-1, 1, (8, 2)), jnp.float32),
            'rewards': -jnp.ones(8),
            'masks': jnp.ones(8),
            'next_actions': jnp.zeros((8, 2)),
            'next_actions_valid': jnp.ones(8),
        }
        for _ in range(6)
    ]
    abstract = abstract_state(learner, mesh)
    steps = [make_train_step(learner, batch_preparer(spec), abstract, n, False) for n in (1, 6)]
    digests = set()
    for step, size in [(steps[0], 1), (steps[1], 1), (steps[1], 4), (steps[1], 6)]:
        state = initial_state(learner, 0, mesh)
        for start in range(0, 6, size):
            state, _ = step(state, batches[start : start + size])
        digests.add(tree_digest(state))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ('backend', 'per_call', 'has_convolutions', 'loops'),
    [
        ('cpu', 1, True, False),
        ('cpu', 1, False, True),
        ('gpu', 1, True, False),
        ('gpu', 1, False, False),
        ('gpu', 2, True, True),
    ],
)
def test_a_single_update_is_no_loop_where_the_host_would_wait_for_its_turns(
    monkeypatch, backend, per_call, has_convolutions, loops
):
    monkeypatch.setattr('jax.default_backend', lambda: backend)
    learner, mesh = make_learner(SPEC), one_device_mesh()
    abstract = abstract_state(learner, mesh)
    step = make_train_step(learner, batch_preparer(SPEC), abstract, per_call, has_convolutions)
    arguments = step.arguments(abstract, [random_arrays(0)])
    assert ('while[' in str(step.jitted.trace(*arguments).jaxpr)) == loops


def test_images_are_alone_in_their_call_on_cpus():
    assert updates_per_call(7, has_convolutions=True) == 1
    assert updates_per_call(7, has_convolutions=False) == 7
