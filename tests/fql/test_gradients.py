"""Which parameters receive gradient from which loss, for every way to share encoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fql.latents import encode_batch
from fql.losses import bc_flow_loss, critic_loss, distill_loss, q_loss, sample_draws
from fql.train_state import init_state
from fql.update import update

from encoders.impala import ImpalaEncoder
from fql.batch import Batch
from fql.networks import make_networks
from fql.training.config import AgentConfig

ACTION_DIM = 3
SMALL = AgentConfig(hidden_dims=(16, 16), flow_steps=2)
SHARED = SMALL
SHARED_CRITIC_ONLY = dataclasses.replace(SMALL, bc_flow_trains_encoder=False)
SEPARATE = dataclasses.replace(SMALL, encoder_sharing='separate')


@functools.cache
def make(config):
    networks = dataclasses.replace(
        make_networks(config, ACTION_DIM, images=True),
        encoder=ImpalaEncoder(stack_sizes=(4,), hidden_dims=(8,)),
    )
    rng = np.random.default_rng(0)
    batch = Batch(
        observations=jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
        actions=jnp.asarray(rng.uniform(-1, 1, (4, ACTION_DIM)), jnp.float32),
        rewards=jnp.asarray([-1.0, -1.0, 0.0, -1.0]),
        masks=jnp.asarray([1.0, 1.0, 0.0, 1.0]),
        next_observations=jnp.asarray(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)),
    )
    state = jax.jit(lambda: init_state(0, networks, config, batch.observations, ACTION_DIM))()
    return networks, batch, state


@functools.cache
def jit_update(config):
    networks = make(config)[0]
    return jax.jit(lambda state, batch: update(networks, config, state, batch))


@functools.cache
def trained_parts(config):
    """Of each loss, the names of the parts of the parameters with a gradient other than zero."""
    networks, batch, state = make(config)
    draws = sample_draws(jax.random.key(1), 4, ACTION_DIM)

    def losses(params):
        latents = encode_batch(params, state.target_params, networks, config, batch)
        actions = networks.one_step(params, latents.one_step_policy, draws.policy_noise)
        noise, time = draws.flow_noise, draws.flow_time
        target, next_noise = state.target_params, draws.next_action_noise
        return {
            'critic': critic_loss(params, target, networks, config, latents, batch, next_noise)[0],
            'bc_flow': bc_flow_loss(params, networks, latents, batch, noise, time)[0],
            'distill': distill_loss(params, networks, config, latents, actions, draws.policy_noise)[
                0
            ],
            'q': q_loss(params, networks, config, latents, actions)[0],
        }

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
    name = 'shared' if config.encoder_sharing == 'shared' else 'critic'
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
