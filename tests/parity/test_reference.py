"""Parity with the reference implementations' numbers, in `separate` mode and on vectors.

`data/README.md` describes the files. If `$FQL_REFERENCE` names a file, only that one is tested:
here, or in the tests of data, by what it contains.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipeline.files import load_arrays
from encoders.impala import ENCODERS, ImpalaEncoder
from fql.agents.base import Agent
from fql.agents.configs import AGENT_CONFIGS, AgentConfig, EncoderConfig, Spec
from fql.agents.registry import make_agent
from fql.batch import Batch
from fql.learner import Learner, TrainState, make_optimizer

DATA = Path(__file__).parent / 'data'
SETTINGS = ('hidden_dims', 'critic_layer_norm', 'actor_layer_norm', 'lr', 'discount', 'tau')
"""The settings of every agent, with the same name in the reference."""
GRADIENT_METRICS = {
    'grad_norm': lambda leaves: sum(jnp.linalg.norm(leaf.ravel()) for leaf in leaves),
    # The reference includes the targets' zeros in its gradient statistics.
    'grad_max': lambda leaves: max(0.0, *(leaf.max() for leaf in leaves)),
    'grad_min': lambda leaves: min(0.0, *(leaf.min() for leaf in leaves)),
}


@dataclass(frozen=True)
class Reference:
    """The names in the reference files of one agent, and the tolerances.

    Attributes:
        agent: our name of it.
        settings: our names of the settings, by theirs.
        fixed: settings that we do not have, and the only values at which we do the same.
        without_effect: settings that change nothing in the reference at the `fixed` ones.
        ours: settings that the reference does not have.
        metrics: our names of the metrics, by theirs; or the value, if it is constant.
        unmoved: their networks that no loss trains, and that we do not have.
        draws: the order of the draws, if ours have no names.
        policies: our names of the policies, by the key of their actions in `eval`.
        metrics_rtol: of metrics; their absolute tolerance is 1e-5.
        gradients_rtol: of each array, relative to its norm.
    """

    agent: str
    metrics: Mapping[str, str | float]
    settings: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    without_effect: frozenset[str] = frozenset()
    ours: Mapping[str, Any] = field(default_factory=dict)
    unmoved: frozenset[str] = frozenset()
    draws: tuple[str, ...] = ()
    policies: Mapping[str, str] = field(default_factory=dict)
    metrics_rtol: float = 2e-5
    gradients_rtol: float = 2e-5


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def temperatures(zero: str, one: str) -> dict[str, str]:
    return {'actions_temperature_0': zero, 'actions_temperature_1': one}


Q_METRICS = {
    'critic_loss': 'critic/loss',
    'q_mean': 'critic/q_mean',
    'q_max': 'critic/q_max',
    'q_min': 'critic/q_min',
}
VALUE_METRICS = {
    'value_loss': 'value/loss',
    'v_mean': 'value/v_mean',
    'v_max': 'value/v_max',
    'v_min': 'value/v_min',
    'critic_loss': 'critic/loss',
    'td_target_mean': 'critic/target_mean',
    'td_target_max': 'critic/target_max',
    'td_target_min': 'critic/target_min',
}
CHUNKS = Reference(
    agent='',
    metrics={**Q_METRICS, 'bc_flow_loss': 'actor/bc_flow_loss'},
    settings={
        **same('flow_steps', 'q_agg'),
        'horizon_length': 'horizon',
        'num_qs': 'num_critics',
    },
    fixed={'use_fourier_features': False, 'weight_decay': 0.0},
    without_effect=frozenset({'fourier_feature_dim', 'normalize_q_loss'}),
)
DISTILLED_METRICS = {
    **CHUNKS.metrics,
    'actor_loss': 'actor/loss',
    'distill_loss': 'actor/distill_loss',
    'q_loss': 'actor/q_loss',
}

REFERENCES = {
    'fql': Reference(
        agent='fql',
        metrics={
            **Q_METRICS,
            'actor_loss': 'actor/loss',
            'bc_flow_loss': 'actor/bc_flow_loss',
            'distill_loss': 'actor/distill_loss',
            'q_loss': 'actor/q_loss',
        },
        settings=same('alpha', 'flow_steps', 'q_agg', 'normalize_q_loss'),
        policies={'actions': 'one_step'},
        metrics_rtol=1e-5,
        gradients_rtol=1e-5,
    ),
    'iql': Reference(
        agent='iql',
        metrics={
            **VALUE_METRICS,
            'actor_loss': 'actor/loss',
            'advantage_mean': 'actor/advantage_mean',
            'bc_log_prob': 'actor/bc_log_prob',
            'bc_loss': 'actor/bc_loss',
            'mse': 'actor/mse',
            'policy_q_mean': 'actor/policy_q_mean',
            'policy_q_abs_mean': 'actor/policy_q_abs_mean',
            'q_loss': 'actor/q_loss',
            'std': 'actor/std',
        },
        settings=same('actor_loss', 'alpha', 'const_std', 'expectile'),
        draws=('policy_noise',),
        policies=temperatures('mean', 'sample'),
        # exp(alpha * A) magnifies rounding errors.
        gradients_rtol=5e-5,
    ),
    'rebrac': Reference(
        agent='rebrac',
        metrics={
            **Q_METRICS,
            'actor_total_loss': 'actor/loss',
            'bc_loss': 'actor/bc_loss',
            'mse': 'actor/squared_error',
            'q_loss': 'actor/q_loss',
            'std': 1.0,
        },
        settings=same(
            *('actor_freq', 'actor_noise', 'actor_noise_clip'),
            *('alpha_actor', 'alpha_critic', 'tanh_squash'),
        ),
        fixed={'actor_fc_scale': 0.01},
        ours={'as_published': True},
        draws=('next_action_noise',),
        policies=temperatures('mode', 'noisy'),
    ),
    'ifql': Reference(
        agent='ifql',
        metrics={**VALUE_METRICS, 'actor_loss': 'actor/bc_flow_loss'},
        settings=same('expectile', 'flow_steps', 'num_samples'),
        draws=('flow_noise', 'flow_time'),
        policies={'actions': 'best_of_n'},
    ),
    'sac': Reference(
        agent='sac',
        metrics={
            **Q_METRICS,
            'actor_loss': 'actor/loss',
            'actor_total_loss': 'actor/total_loss',
            'alpha': 'actor/alpha',
            'alpha_loss': 'actor/alpha_loss',
            'entropy': 'actor/entropy',
            'policy_q_mean': 'actor/policy_q_mean',
            'std': 'actor/std',
        },
        settings=same('backup_entropy', 'q_agg', 'target_entropy_multiplier'),
        fixed={'actor_fc_scale': 0.01, 'state_dependent_std': True, 'tanh_squash': True},
        # It is derived from the multiplier if it is not given.
        without_effect=frozenset({'target_entropy'}),
        policies=temperatures('mode', 'sample'),
    ),
    'acfql distill-ddpg': Reference(
        agent='qc_fql',
        metrics=DISTILLED_METRICS,
        settings={**CHUNKS.settings, **same('alpha')},
        fixed={**CHUNKS.fixed, 'action_chunking': True},
        without_effect=CHUNKS.without_effect | {'actor_num_samples'},
        policies={'actions': 'one_step'},
    ),
    'acfql distill-ddpg without chunks': Reference(
        agent='fql',
        metrics=DISTILLED_METRICS,
        settings={**CHUNKS.settings, **same('alpha')},
        fixed={**CHUNKS.fixed, 'action_chunking': False},
        without_effect=CHUNKS.without_effect | {'actor_num_samples'},
        policies={'actions': 'one_step'},
    ),
    'acfql best-of-n': Reference(
        agent='qc',
        metrics={
            **CHUNKS.metrics,
            'actor_loss': 'actor/bc_flow_loss',
            'distill_loss': 0.0,
            'q_loss': 0.0,
        },
        settings={
            **CHUNKS.settings,
            **same('action_chunking'),
            'actor_num_samples': 'num_samples',
        },
        fixed=CHUNKS.fixed,
        without_effect=CHUNKS.without_effect | {'alpha'},
        unmoved=frozenset({'one_step_policy'}),
        policies={'actions': 'best_of_n'},
    ),
}


class File:
    """The contents of one file, in our names and layouts."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.values: dict[str, Any] = json.loads(str(arrays['config']))
        kind = [self.values.get('agent', 'fql')]
        if 'actor_type' in self.values:
            kind.append(self.values['actor_type'])
        if kind[1:] == ['distill-ddpg'] and not self.values['action_chunking']:
            kind.append('without chunks')
        if ' '.join(kind) not in REFERENCES:
            raise pytest.Collector.CollectError(
                f'{path} is of agent {" ".join(kind)}; there are {", ".join(REFERENCES)}'
            )
        self.reference = REFERENCES[' '.join(kind)]
        self.chunks = kind[0] == 'acfql'
        self.updates = self.values['updates']
        self.updates_done: list[Any] = []

    def subtree(self, prefix: str) -> dict[str, Any]:
        """The nested dictionary of all entries below `prefix/`."""
        tree: dict[str, Any] = {}
        for path, value in self.arrays.items():
            if path.startswith(f'{prefix}/'):
                *parents, leaf = path.removeprefix(f'{prefix}/').split('/')
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[leaf] = jnp.asarray(value)
        return tree

    def config(self) -> AgentConfig:
        """Our settings; asserts that their remaining settings have the values that we implement."""
        reference = self.reference
        values = dict(self.values)
        for name in ('agent', 'actor_type', 'encoder', 'updates'):
            values.pop(name, None)
        names = {**same(*SETTINGS), **reference.settings}
        settings = {}
        for name, value in values.items():
            if name in reference.fixed:
                assert value == reference.fixed[name], name
            elif name not in reference.without_effect:
                assert name in names, f'{name} is no setting of ours'
                settings[names[name]] = tuple(value) if isinstance(value, list) else value
        if 'target_entropy' in values:
            size = self.arrays['step_0/batch/actions'].shape[-1]
            assert values['target_entropy'] == -values['target_entropy_multiplier'] * size
        encoder = EncoderConfig(size='impala_debug', sharing='separate')
        config = AGENT_CONFIGS[reference.agent](encoder=encoder, **settings, **reference.ours)
        for name, value in settings.items():
            assert getattr(config, name) == value
        return config

    def encoder(self) -> ImpalaEncoder | None:
        """The encoder of images."""
        if self.values['encoder'] is None:
            return None
        sizes = dict(self.values['encoder'])
        encoder = ImpalaEncoder(
            stack_sizes=tuple(sizes.pop('stack_sizes')),
            num_blocks=sizes.pop('num_blocks'),
            hidden_dims=tuple(sizes.pop('mlp_hidden_dims')),
        )
        assert not sizes
        return encoder

    def agent(self) -> Agent:
        """Our agent of these settings."""
        observations = self.arrays['step_0/batch/observations']
        spec = Spec(
            observation_shape=observations.shape[1:],
            action_dim=self.arrays['step_0/batch/actions'].shape[-1],
        )
        assert spec.has_images == (self.encoder() is not None)
        return make_agent(self.config(), spec)

    def networks(self, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Their networks in our layout (encoders separate): online ones, and averages."""
        online: dict[str, Any] = {'encoders': {}}
        averages: dict[str, Any] = {'encoders': {}}
        for name, network in self.subtree(prefix).items():
            if name in self.reference.unmoved:
                continue
            head = name.removeprefix('target_')
            params = online if head == name else averages
            if 'encoder' in network:
                params['encoders'][head] = network.pop('encoder')
            params[head] = network
        return online, averages

    def state(self, learner: Learner) -> TrainState:
        """The state before the first update."""
        params, target_params = self.networks('initial_params')
        fresh = jax.eval_shape(lambda: learner.init(0))
        assert_same_shapes(params, fresh.params)
        assert_same_shapes(target_params, fresh.target_params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            target_params=target_params,
            opt_state=learner.optimizer.init(learner.trained(params)),
            key=jax.random.key(0),
        )

    def batch(self, step: int) -> Batch:
        """The batch of an update."""
        arrays = self.subtree(f'step_{step}/batch')
        if self.chunks:
            # Observations after each action; images are stacked before the channels.
            following = arrays['next_observations']
            following = following[..., -1, :] if following.ndim == 5 else following[:, -1]
            arrays['next_observations'] = following
            del arrays['terminals']
        if 'next_actions' in arrays:
            # As published, the actions after a trajectory's last one are included.
            arrays['next_actions_valid'] = jnp.zeros(len(arrays['actions']))
        return Batch(**arrays)

    def draws(self, agent: Agent, step: int) -> Any:
        """The random numbers of an update; arbitrary ones for draws that the reference lacks."""
        sampled = agent.sample_draws(jax.random.key(0), self.batch(step))
        given = self.subtree(f'step_{step}/draws')
        if not given:
            return sampled
        if names := self.reference.draws:
            assert sorted(given) == sorted(names)
            draws = tuple(given[name] for name in names)
            draws = draws if isinstance(sampled, tuple) else draws[0]
        else:
            draws = sampled._replace(**given)
        assert_same_shapes(draws, sampled)
        return draws

    def actions(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Observations, noise, and the actions that each of our policies computes from these."""
        arrays = {
            key.removeprefix('eval/'): value
            for key, value in self.arrays.items()
            if key.startswith('eval/')
        }
        if '0/action' in arrays:
            count = len(arrays) // 3
            arrays = {
                f'{name}s' if name != 'noise' else name: np.stack(
                    [arrays[f'{i}/{name}'] for i in range(count)]
                )
                for name in ('observation', 'noise', 'action')
            }
        observations, noise = arrays.pop('observations'), arrays.pop('noise')
        return observations, noise, {self.reference.policies[key]: arrays[key] for key in arrays}


def assert_same_shapes(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), x) for x in (got, expected)]
    assert shapes[0] == shapes[1]


def find_files() -> dict[str, File]:
    """All files of an agent's updates, by name; the others are for the tests of data."""
    named = os.environ.get('FQL_REFERENCE')
    paths = [Path(named)] if named else sorted(DATA.glob('*.npz'))
    assert paths, f'no reference values in {DATA}'
    contents = {path: load_arrays(path) for path in paths}
    return {
        path.stem: File(path, arrays)
        for path, arrays in contents.items()
        if 'step_0/batch/actions' in arrays
    }


FILES = find_files()
COMPARED = [
    pytest.param(name, marks=pytest.mark.long)
    if name in ('acfql_distill_pixels', 'ifql_pixels', 'rebrac_pixels')
    and not os.environ.get('FQL_REFERENCE')
    else name
    for name in FILES
]
"""Files to compare; those whose agents `make test` compares from states are for test-all."""


@pytest.fixture
def file(request, monkeypatch):
    file = FILES[request.param]
    if encoder := file.encoder():
        monkeypatch.setitem(ENCODERS, 'impala_debug', encoder)
    with jax.default_matmul_precision('highest'):
        yield file


KEEP_GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params=None: (grads, grads),
)
"""Its state is the gradient of the update, so that it is not computed a second time."""


@pytest.fixture
def learner(file):
    agent = file.agent()
    optimizer = make_optimizer(agent.config.lr, agent.config.encoder)
    return Learner(agent, optax.chain(KEEP_GRADIENT, optimizer))


@pytest.mark.parametrize('name', FILES)
def test_every_setting_of_the_reference_is_one_of_ours(name):
    assert FILES[name].config().name == FILES[name].reference.agent


@pytest.mark.parametrize('name', FILES)
def test_what_we_leave_out_does_nothing_in_the_reference(name):
    file = FILES[name]
    initial, final, grads = map(file.subtree, ('initial_params', 'final_params', 'step_0/grads'))
    for network in file.reference.unmoved:
        jax.tree.map(np.testing.assert_array_equal, initial[network], final[network])
        assert not any(leaf.any() for leaf in jax.tree.leaves(grads[network]))


@pytest.fixture
def updates(file, learner, options_of_training):
    """Gradient, metrics and next state of each update, computed once per file."""
    if file.updates_done:
        return file.updates_done

    step = jax.jit(learner.update, compiler_options=options_of_training)
    done, state = [], file.state(learner)
    for k in range(file.updates):
        state, metrics = step(state, file.batch(k), file.draws(learner.agent, k))
        grads, _ = state.opt_state
        done.append((grads, metrics, state))
    file.updates_done = done
    return done


@pytest.mark.parametrize('file', COMPARED, indirect=True)
def test_gradients_match_the_reference(file, updates):
    given = [k for k in range(file.updates) if file.subtree(f'step_{k}/grads')]
    assert given[0] == 0
    for k in given:
        got, expected = updates[k][0], file.networks(f'step_{k}/grads')[0]
        for path, ours, theirs in pairs(got, expected):
            error = np.linalg.norm(ours - theirs)
            allowed = file.reference.gradients_rtol * np.linalg.norm(theirs)
            assert error <= allowed, f'step {k}: {path}'


@pytest.mark.parametrize('file', COMPARED, indirect=True)
def test_metrics_match_the_reference(file, updates):
    for k, (grads, metrics, _) in enumerate(updates):
        given = file.subtree(f'step_{k}/metrics')
        assert given
        for theirs, expected in given.items():
            if theirs in GRADIENT_METRICS:
                got = GRADIENT_METRICS[theirs](jax.tree.leaves(grads))
            else:
                ours = file.reference.metrics[theirs]
                got = ours if isinstance(ours, float) else metrics[ours]
            np.testing.assert_allclose(
                got,
                expected,
                rtol=file.reference.metrics_rtol,
                atol=1e-5,
                err_msg=f'step {k}: {theirs}',
            )


@pytest.mark.parametrize('file', COMPARED, indirect=True)
def test_parameters_match_the_reference(file, updates):
    """After the last update, the averages included."""
    state = updates[-1][2]
    params, target_params = file.networks('final_params')
    for got, expected in [(state.params, params), (state.target_params, target_params)]:
        for path, ours, theirs in pairs(got, expected):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6, err_msg=path)


def pairs(got: Any, expected: Any) -> list[tuple[str, jax.Array, jax.Array]]:
    """(path, leaf, leaf) of two trees of the same structure."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    return [
        (jax.tree_util.keystr(path), ours, theirs)
        for (path, ours), theirs in zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
        )
    ]


@pytest.mark.parametrize(
    'file', [name for name in FILES if FILES[name].subtree('eval')], indirect=True
)
def test_actions_match_the_reference(file, learner):
    agent, (params, _) = learner.agent, file.networks('final_params')
    observations, noise, expected = file.actions()
    assert noise.shape == (len(observations), *agent.noise_shape)
    for policy, actions in expected.items():
        got = jax.jit(agent.act, static_argnums=3)(params, observations, noise, policy)
        assert got.shape == (len(observations), agent.action_horizon, agent.spec.action_dim)
        got = got.reshape(actions.shape)
        np.testing.assert_allclose(got, actions, rtol=0, atol=2e-6, err_msg=policy)
