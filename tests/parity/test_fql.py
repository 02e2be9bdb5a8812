"""Parity with the reference implementation's numbers, in `separate` mode and on vectors."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.impala import ImpalaEncoder
from fql.batch import Batch
from fql.training.config import AgentConfig
from fql.losses import Draws
from fql.networks import Critic, Networks, VectorField
from fql.train_state import TrainState, make_optimizer
from fql.update import loss_and_grads, update_with_draws

SHARED = Path(__file__).resolve().parents[3] / 'shared' / 'reference'
NETWORKS = ('critic', 'bc_flow', 'one_step_policy')
METRICS = {
    'critic_loss': 'critic/loss',
    'q_mean': 'critic/q_mean',
    'bc_flow_loss': 'actor/bc_flow_loss',
    'distill_loss': 'actor/distill_loss',
    'q_loss': 'actor/q_loss',
    'actor_loss': 'actor/loss',
}


def reference_files() -> list[Path]:
    if path := os.environ.get('FQL_REFERENCE'):
        return [Path(path)]
    return [SHARED / 'fql_pixels.npz', SHARED / 'fql_states.npz']


def subtree(arrays: dict[str, np.ndarray], prefix: str) -> dict:
    """The nested dictionary of all entries below `prefix/`."""
    tree: dict = {}
    for path, value in arrays.items():
        if path.startswith(f'{prefix}/'):
            *parents, leaf = path.removeprefix(f'{prefix}/').split('/')
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jnp.asarray(value)
    return tree


def to_params(tree: dict) -> dict:
    """The reference's layout (an encoder inside each network) in ours (encoders apart)."""
    params = {name: {'mlp': tree[name]['mlp']} for name in NETWORKS}
    encoders = {name: tree[name]['encoder'] for name in NETWORKS if 'encoder' in tree[name]}
    return {'encoders': encoders, **params}


def to_target_params(tree: dict) -> dict:
    target = tree['target_critic']
    encoders = {'critic': target['encoder']} if 'encoder' in target else {}
    return {'encoders': encoders, 'critic': {'mlp': target['mlp']}}


def make_agent(arrays: dict[str, np.ndarray]) -> tuple[AgentConfig, Networks]:
    values = json.loads(str(arrays['config']))
    encoder = values.pop('encoder')
    values.pop('updates')
    values['hidden_dims'] = tuple(values['hidden_dims'])
    config = AgentConfig(encoder_sharing='separate', **values)
    actor = VectorField(
        config.hidden_dims,
        arrays['step_0/batch/actions'].shape[-1],
        config.actor_layer_norm,
    )
    return config, Networks(
        encoder=encoder
        and ImpalaEncoder(
            stack_sizes=tuple(encoder['stack_sizes']),
            num_blocks=encoder['num_blocks'],
            hidden_dims=tuple(encoder['mlp_hidden_dims']),
        ),
        critic=Critic(config.hidden_dims, config.critic_layer_norm),
        bc_flow=actor,
        one_step_policy=actor,
    )


def init(config: AgentConfig, arrays: dict[str, np.ndarray]) -> TrainState:
    initial = subtree(arrays, 'initial_params')
    params = to_params(initial)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=to_target_params(initial),
        opt_state=make_optimizer(config).init(params),
        key=jax.random.key(0),
    )


def step_inputs(arrays: dict[str, np.ndarray], step: int) -> tuple[Batch, Draws]:
    return (
        Batch(**subtree(arrays, f'step_{step}/batch')),
        Draws(**subtree(arrays, f'step_{step}/draws')),
    )


@pytest.fixture(params=reference_files(), ids=lambda path: path.stem)
def arrays(request):
    if not request.param.exists():
        pytest.skip(f'no reference values at {request.param} (set FQL_REFERENCE to a file)')
    with (
        np.load(request.param, allow_pickle=False) as file,
        jax.default_matmul_precision('highest'),
    ):
        yield dict(file)


def test_gradients_match_the_reference(arrays, options_of_training):
    config, networks = make_agent(arrays)
    state = init(config, arrays)
    batch, draws = step_inputs(arrays, 0)
    grads, _ = jax.jit(
        lambda s: loss_and_grads(networks, config, s.params, s.target_params, batch, draws),
        compiler_options=options_of_training,
    )(state)
    expected = subtree(arrays, 'step_0/grads')
    wanted = jax.tree_util.tree_leaves_with_path(to_params(expected))
    got = dict(jax.tree_util.tree_leaves_with_path(grads))
    assert len(wanted) == len(got)
    for path, value in wanted:
        error = np.linalg.norm(got[path] - value)
        assert error <= 1e-5 * np.linalg.norm(value), jax.tree_util.keystr(path)


def test_updates_match_the_reference(arrays, options_of_training):
    config, networks = make_agent(arrays)
    state = init(config, arrays)
    step = jax.jit(
        lambda s, b, d: update_with_draws(networks, config, s, b, d),
        compiler_options=options_of_training,
    )
    for k in range(json.loads(str(arrays['config']))['updates']):
        state, metrics = step(state, *step_inputs(arrays, k))
        for theirs, ours in METRICS.items():
            np.testing.assert_allclose(
                metrics[ours],
                arrays[f'step_{k}/metrics/{theirs}'],
                rtol=1e-5,
                atol=1e-5,
                err_msg=f'step {k}: {ours}',
            )
    final = subtree(arrays, 'final_params')
    for ours, theirs in [
        (state.params, to_params(final)),
        (state.target_params, to_target_params(final)),
    ]:
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for (path, value), expected in zip(
            jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
        ):
            np.testing.assert_allclose(
                value, expected, rtol=0, atol=1e-6, err_msg=jax.tree_util.keystr(path)
            )
