"""Default settings against the published ones, written out here as their sources give them.

Sources: the configuration defaults and READMEs of the FQL repository (719d044) and of the
Q-chunking repository (48283b4).
"""

import pytest

from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import find_task
from fql.settings.presets import default_config
from fql.settings.train_config import TrainConfig

OF_ALL = {
    'lr': 3e-4,
    'discount': 0.99,
    'tau': 0.005,
    'hidden_dims': (512, 512, 512, 512),
    'critic_layer_norm': True,
    'actor_layer_norm': False,
}
OF_AGENTS = {
    'fql': {
        'alpha': 10,
        'flow_steps': 10,
        'q_agg': 'mean',
        'normalize_q_loss': False,
        # What the published agent does, and has no settings for.
        'num_critics': 2,
        'critic_pessimism': 0,
        'candidates': 1,
        'target_candidates': 1,
        'horizon': 1,
        'distillation': 'euler',
    },
    'iql': {'expectile': 0.9, 'actor_loss': 'awr', 'alpha': 10, 'const_std': True},
    'rebrac': {
        'alpha_actor': 0,
        'alpha_critic': 0,
        'actor_freq': 2,
        'actor_noise': 0.2,
        'actor_noise_clip': 0.5,
        'tanh_squash': True,
    },
    'ifql': {'expectile': 0.9, 'num_samples': 32, 'flow_steps': 10},
    'fbrac': {'flow_steps': 10, 'q_agg': 'mean', 'normalize_q_loss': False},
    'fawac': {'flow_steps': 10, 'q_agg': 'mean'},
    'bc': {'flow_steps': 10},
    'sac': {'q_agg': 'min', 'backup_entropy': False, 'target_entropy_multiplier': 0.5},
    'qc_fql': {'alpha': 100, 'horizon': 5, 'flow_steps': 10, 'q_agg': 'mean', 'num_critics': 2},
    'qc': {
        'horizon': 5,
        'action_chunking': True,
        'num_samples': 32,
        'flow_steps': 10,
        'q_agg': 'mean',
        'num_critics': 2,
    },
}
OF_PIXEL_RUNS = {
    'steps': 500_000,
    'batch_size': 256,
    'frame_stack': 3,
    'shift_probability': 0.5,
    'eval_interval': 100_000,
    'eval_episodes': 50,
    'success_timing': 'post',
}
ONLINE_ALPHA = {
    # The default tasks of OGBench's datasets.
    'humanoidmaze-medium-navigate-singletask-v0': 100,
    'antsoccer-arena-navigate-singletask-v0': 30,
    'cube-double-play-singletask-v0': 300,
    'scene-play-singletask-v0': 300,
    'puzzle-4x4-play-singletask-v0': 1000,
    # D4RL.
    'antmaze-umaze-v2': 10,
    'antmaze-umaze-diverse-v2': 10,
    'antmaze-medium-play-v2': 10,
    'antmaze-medium-diverse-v2': 10,
    'antmaze-large-play-v2': 3,
    'antmaze-large-diverse-v2': 3,
    'pen-cloned-v1': 1000,
    'door-cloned-v1': 1000,
    'hammer-cloned-v1': 1000,
    'relocate-cloned-v1': 10000,
}
"""FQL's, of the 15 tasks on which the paper goes on online."""


def values_of(config, names):
    return {name: getattr(config, name) for name in names}


@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_an_agents_defaults_are_the_published_ones(name):
    expected = {**OF_ALL, **OF_AGENTS[name]}
    assert values_of(AGENT_CONFIGS[name](), expected) == expected


def test_a_runs_defaults_are_those_of_the_published_pixel_runs():
    assert values_of(TrainConfig(task='t'), OF_PIXEL_RUNS) == OF_PIXEL_RUNS


@pytest.mark.parametrize('task', ONLINE_ALPHA)
def test_fql_goes_on_online_as_published(task):
    """With the published alpha, on data and replay as one, an update a step from the first on."""
    config = default_config(find_task(task))
    online = config.online
    alpha = config.agent.alpha if online.alpha is None else online.alpha
    assert alpha == ONLINE_ALPHA[task]
    assert online.offline_ratio == 'uniform'
    assert (online.updates_per_env_step, online.online_warmup) == (1, 0)
    assert config.agent.q_agg == ('min' if task.endswith('-cloned-v1') else 'mean')
    is_far = task.startswith(('humanoidmaze', 'antsoccer'))
    assert config.agent.discount == (0.995 if is_far else 0.99)


def test_half_of_each_batch_is_data_in_rlpd_alone():
    for task in map(find_task, (*ONLINE_ALPHA, 'own')):
        for agent in AGENT_CONFIGS:
            ratio = default_config(task, agent).online.offline_ratio
            assert ratio == (0.5 if agent == 'sac' else 'uniform'), (task.name, agent)
