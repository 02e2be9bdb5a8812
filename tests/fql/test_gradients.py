"""Which parameters receive gradient from which loss, for every way to share encoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.impala import ENCODERS, ImpalaEncoder
from fql.agents.configs import EncoderConfig, FQLConfig, Spec
from fql.agents.registry import make_agent
from fql.batch import Batch
from fql.learner import Learner, make_optimizer

ACTION_DIM = 3
SHARED = FQLConfig(hidden_dims=(16, 16), flow_steps=2, encoder=EncoderConfig(size='impala_debug'))
SHARED_CRITIC_ONLY = dataclasses.replace(SHARED, bc_flow_trains_encoder=False)
SEPARATE = dataclasses.replace(
    SHARED, encoder=EncoderConfig(size='impala_debug', sharing='separate')
)
LOSSES = {
    'critic': 'critic/loss',
    'bc_flow': 'actor/bc_flow_loss',
    'distill': 'actor/distill_loss',
    'q': 'actor/q_loss',
}


@pytest.fixture(autouse=True, scope='module')
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        encoder = ImpalaEncoder(stack_sizes=(4,), hidden_dims=(8,))
        patch.setitem(ENCODERS, 'impala_debug', encoder)
        yield


@functools.cache
def make(config):
    agent = make_agent(config, Spec((8, 8, 3), 'uint8', ACTION_DIM))
    learner = Learner(agent, make_optimizer(config.lr, config.encoder))
    rng = np.random.default_rng(0)
    batch = Batch(
        observations=jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
        actions=jnp.asarray(rng.uniform(-1, 1, (4, ACTION_DIM)), jnp.float32),
        rewards=jnp.asarray([-1.0, -1.0, 0.0, -1.0]),
        masks=jnp.asarray([1.0, 1.0, 0.0, 1.0]),
        next_observations=jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
    )
    return learner, batch, jax.jit(lambda: learner.init(0))()


@functools.cache
def jit_update(config):
    return jax.jit(make(config)[0].update)


@functools.cache
def trained_parts(config):
    """Of each loss, the names of the parts of the parameters with a gradient other than zero."""
    learner, batch, state = make(config)
    draws = learner.agent.sample_draws(jax.random.key(1), batch)

    def losses(params):
        _, metrics = learner.agent.loss(params, state.target_params, batch, draws, state.step)
        return {loss: metrics[name] for loss, name in LOSSES.items()}

    found = {}
    for loss, grads in jax.jit(jax.jacrev(losses))(state.params).items():
        parts = {f'encoder:{name}': tree for name, tree in grads['encoders'].items()}
        parts |= {name: grads[name] for name in ('critic', 'bc_flow', 'one_step_policy')}
        found[loss] = {
            name
            for name, tree in parts.items()
            if any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))
        }
    return found


@pytest.mark.parametrize(
    ('config', 'loss', 'trained'),
    [
        (SHARED, 'critic', {'critic', 'encoder:shared'}),
        (SHARED, 'bc_flow', {'bc_flow', 'encoder:shared'}),
        (SHARED, 'distill', {'one_step_policy'}),
        (SHARED, 'q', {'one_step_policy'}),
        (SHARED_CRITIC_ONLY, 'critic', {'critic', 'encoder:shared'}),
        (SHARED_CRITIC_ONLY, 'bc_flow', {'bc_flow'}),
        (SHARED_CRITIC_ONLY, 'distill', {'one_step_policy'}),
        (SEPARATE, 'critic', {'critic', 'encoder:critic'}),
        (SEPARATE, 'bc_flow', {'bc_flow', 'encoder:bc_flow'}),
        (SEPARATE, 'distill', {'one_step_policy', 'encoder:one_step_policy'}),
        (SEPARATE, 'q', {'one_step_policy', 'encoder:one_step_policy'}),
    ],
)
def test_loss_trains_exactly(config, loss, trained):
    assert trained_parts(config)[loss] == trained


@pytest.mark.parametrize('config', [SHARED, SEPARATE])
def test_target_network_follows_the_critic_before_the_step(config):
    _, batch, state = make(config)
    state = dataclasses.replace(
        state, target_params=jax.tree.map(jnp.zeros_like, state.target_params)
    )
    new_state, _ = jit_update(config)(state, batch)
    name = 'shared' if config.encoder.sharing == 'shared' else 'critic'
    assert new_state.target_params['encoders'].keys() == {name}
    for target, source in [
        (new_state.target_params['critic'], state.params['critic']),
        (new_state.target_params['encoders'][name], state.params['encoders'][name]),
    ]:
        jax.tree.map(
            lambda t, s: np.testing.assert_allclose(t, config.tau * s, rtol=1e-6), target, source
        )
    assert int(new_state.step) == 1


def test_draws_depend_on_the_step_alone():
    _, batch, state = make(SHARED)
    compiled = jit_update(SHARED)
    once, _ = compiled(state, batch)
    again, _ = compiled(state, batch)
    later, _ = compiled(dataclasses.replace(state, step=state.step + 1), batch)
    equal = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), once.params, again.params)
    assert all(jax.tree.leaves(equal))
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), once.params, later.params)
    assert not all(jax.tree.leaves(same))
