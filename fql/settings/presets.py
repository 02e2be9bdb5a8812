"""Published hyperparameters, by agent and dataset, and the settings that a run starts from.

Sources: the README and the configuration defaults of the FQL repository at commit 719d044 (Park,
Li, Levine 2025), those of the Q-chunking repository at 48283b4 (Li, Zhou, Levine 2025), and, where
said, Table 6 of the FQL paper and the README of Value Flows. Settings that none of them gives are
not tuned.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fql.agents.configs import (
    AGENT_CONFIGS,
    AgentConfig,
    EncoderConfig,
)
from fql.envs.tasks import (
    ANTMAZE_TASKS,
    OWN_TASK,
    QUICKSTART_DATASET,
    QUICKSTART_FAR_TASKS,
    QUICKSTART_TASK,
    SMALL_PUZZLE_DATASET,
    SMALL_PUZZLE_TASK,
    Task,
    find_task,
)
from fql.errors import FQLError
from fql.settings.train_config import OnlineConfig, TrainConfig

FQL = 'FQL README (719d044)'
QC = 'Q-chunking README (48283b4)'
VALUE_FLOWS = 'Value Flows README (817b01a)'
FQL_PAPER = 'FQL paper (arXiv 2502.02538), Table 6'


@dataclass(frozen=True)
class Preset:
    """Published hyperparameters of an agent on a dataset.

    Attributes:
        settings: what differs from the agent's defaults.
        source: where they were published.
    """

    settings: Mapping[str, Any]
    source: str


def _published(
    source: str, agent: str, by_dataset: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], Preset]:
    return {(agent, dataset): Preset(settings, source) for dataset, settings in by_dataset.items()}


_FQL_OGBENCH: dict[str, dict[str, Any]] = {
    'visual-cube-single-play-v0': {'alpha': 300.0},
    'visual-cube-double-play-v0': {'alpha': 100.0},
    'visual-scene-play-v0': {'alpha': 100.0},
    'visual-puzzle-3x3-play-v0': {'alpha': 300.0},
    'visual-puzzle-4x4-play-v0': {'alpha': 300.0},
    'antmaze-large-navigate-v0': {'alpha': 10.0, 'q_agg': 'min'},
    'antmaze-giant-navigate-v0': {'alpha': 10.0, 'q_agg': 'min', 'discount': 0.995},
    'humanoidmaze-medium-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
    'humanoidmaze-large-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
    'antsoccer-arena-navigate-v0': {'alpha': 10.0, 'discount': 0.995},
    'cube-single-play-v0': {'alpha': 300.0},
    'cube-double-play-v0': {'alpha': 300.0},
    'scene-play-v0': {'alpha': 300.0},
    'puzzle-3x3-play-v0': {'alpha': 1000.0},
    'puzzle-4x4-play-v0': {'alpha': 1000.0},
}
_FQL_ANTMAZE: dict[str, dict[str, Any]] = {
    task: {'alpha': 3.0 if 'large' in task else 10.0} for task in ANTMAZE_TASKS
}
_FQL_ADROIT: dict[str, dict[str, Any]] = {
    f'{hand}-{data}-v1': {'alpha': alpha, 'q_agg': 'min'}
    for hand, alphas in {
        'pen': (1e4, 1e4, 3e3),
        'door': (3e4, 3e4, 3e4),
        'hammer': (3e4, 1e4, 3e4),
        'relocate': (1e4, 3e4, 3e4),
    }.items()
    for data, alpha in zip(('human', 'cloned', 'expert'), alphas, strict=True)
}
_HUMANOID = 'humanoidmaze-medium-navigate-v0'
_VISUAL_ANTMAZES = tuple(f'visual-antmaze-{size}-navigate-v0' for size in ('medium', 'teleport'))

PRESETS: dict[tuple[str, str], Preset] = {
    **_published(FQL, 'fql', _FQL_OGBENCH | _FQL_ANTMAZE | _FQL_ADROIT),
    **_published(
        FQL,
        'iql',
        {
            _HUMANOID: {'alpha': 10.0, 'discount': 0.995},
            'visual-cube-single-play-v0': {'alpha': 1.0},
        },
    ),
    **_published(
        FQL,
        'rebrac',
        {
            _HUMANOID: {'alpha_actor': 0.01, 'alpha_critic': 0.01, 'discount': 0.995},
            'visual-cube-single-play-v0': {'alpha_actor': 1.0, 'alpha_critic': 0.0},
        },
    ),
    **_published(
        FQL,
        'ifql',
        {
            _HUMANOID: {'discount': 0.995, 'num_samples': 32},
            'visual-cube-single-play-v0': {'num_samples': 32},
        },
    ),
    **_published(
        FQL_PAPER,
        'iql',
        {
            'visual-cube-double-play-v0': {'alpha': 0.3},
            'visual-scene-play-v0': {'alpha': 10.0},
            'visual-puzzle-3x3-play-v0': {'alpha': 10.0},
            'visual-puzzle-4x4-play-v0': {'alpha': 3.0},
        },
    ),
    **_published(
        FQL_PAPER,
        'rebrac',
        {
            'visual-cube-double-play-v0': {'alpha_actor': 0.1, 'alpha_critic': 0.0},
            'visual-scene-play-v0': {'alpha_actor': 0.1, 'alpha_critic': 0.01},
            'visual-puzzle-3x3-play-v0': {'alpha_actor': 0.3, 'alpha_critic': 0.01},
            'visual-puzzle-4x4-play-v0': {'alpha_actor': 0.3, 'alpha_critic': 0.01},
        },
    ),
    **_published(
        FQL_PAPER,
        'ifql',
        {
            f'visual-{env}-play-v0': {'num_samples': 32}
            for env in ('cube-double', 'scene', 'puzzle-3x3', 'puzzle-4x4')
        },
    ),
    **_published(
        FQL_PAPER,
        'fbrac',
        {
            f'visual-{env}-play-v0': {'alpha': 300.0 if env == 'puzzle-4x4' else 100.0}
            for env in ('cube-single', 'cube-double', 'scene', 'puzzle-3x3', 'puzzle-4x4')
        },
    ),
    **_published(
        VALUE_FLOWS,
        'fql',
        {
            **{dataset: {'alpha': 100.0} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'alpha': 300.0, 'discount': 0.995},
        },
    ),
    **_published(
        VALUE_FLOWS,
        'iql',
        {dataset: {'alpha': 1.0} for dataset in _VISUAL_ANTMAZES},
    ),
    **_published(
        VALUE_FLOWS,
        'rebrac',
        {
            **{
                dataset: {'alpha_actor': 0.01, 'alpha_critic': 0.003}
                for dataset in _VISUAL_ANTMAZES
            },
            'cube-triple-play-v0': {
                'alpha_actor': 0.03,
                'alpha_critic': 0.0,
                'discount': 0.995,
            },
        },
    ),
    **_published(
        VALUE_FLOWS,
        'ifql',
        {
            **{dataset: {'num_samples': 32} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'num_samples': 32, 'discount': 0.995},
        },
    ),
    **_published(
        VALUE_FLOWS,
        'fbrac',
        {
            **{dataset: {'alpha': 100.0} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'alpha': 100.0, 'discount': 0.995},
        },
    ),
    **_published(QC, 'qc_fql', {'cube-triple-play-v0': {'alpha': 100.0}}),
    **_published(QC, 'qc', {'cube-triple-play-v0': {'num_samples': 32}}),
}
"""By agent and dataset."""

ONLINE_PRESETS: dict[tuple[str, str], Preset] = {
    **_published(
        FQL,
        'fql',
        {
            _HUMANOID: {'alpha': 100.0, 'discount': 0.995},
            'antsoccer-arena-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
            'cube-double-play-v0': {'alpha': 300.0},
            'scene-play-v0': {'alpha': 300.0},
            'puzzle-4x4-play-v0': {'alpha': 1000.0},
            **_FQL_ANTMAZE,
            'pen-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'door-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'hammer-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'relocate-cloned-v1': {'alpha': 1e4, 'q_agg': 'min'},
        },
    ),
    **{(agent, _HUMANOID): PRESETS[agent, _HUMANOID] for agent in ('iql', 'rebrac', 'ifql')},
    **_published(FQL, 'sac', {_HUMANOID: {'discount': 0.995}}),
}
"""The same for runs that go on online; for OGBench, tuned on the default task."""


UNTUNED: dict[str, dict[str, Any]] = {'fql': {'normalize_q_loss': True, 'alpha': 1.0}}
"""What differs from an agent's defaults for tasks that nobody tuned, by agent.

FQL's authors advise to normalise Q there, whose scale is not known, and to try an alpha of 0.03,
0.1, 0.3, 1, 3 and 10.
"""

PresetName = Literal['default', 'strong']
STRONG_HORIZON = 5
"""Steps of the return in `strong`: of FQL's, and of QC-FQL's chunks (docs/steadiness.md)."""


def online_defaults(task: Task, agent: str) -> OnlineConfig:
    """The settings of an online phase: RLPD's halves for SAC, else data and replay together.

    alpha is that of `ONLINE_PRESETS` where the offline updates have another one. (Its source uses
    it in its offline updates too; --alpha sets it there.)
    """
    offline, online = (
        presets[agent, task.dataset].settings.get('alpha')
        if (agent, task.dataset) in presets
        else None
        for presets in (PRESETS, ONLINE_PRESETS)
    )
    return OnlineConfig(
        offline_ratio=0.5 if agent == 'sac' else 'uniform',
        alpha=online if online != offline else None,
    )


def has_preset(agent: str, task: Task) -> bool:
    """Whether `default_config` was tuned for the task: by the sources, or here for a small task."""
    if task.name in (QUICKSTART_TASK, *QUICKSTART_FAR_TASKS, SMALL_PUZZLE_TASK):
        return agent == 'fql'
    return (agent, task.dataset) in {**PRESETS, **ONLINE_PRESETS}


def default_config(
    task: Task, agent: str = 'fql', env: str = '', preset: str = 'default'
) -> TrainConfig:
    """The settings that a run of a task starts from.

    Args:
        env: where `OWN_TASK` is evaluated; without it, there are no evaluations.
        preset: `default`: the published settings; where there are none, those for tasks that
            nobody tuned. `strong`: these with returns of `STRONG_HORIZON` steps, for FQL from
            images; chunks of as many steps and FQL's published settings, for QC-FQL from states.

    Raises:
        FQLError: there is no such preset for the task and agent.
    """
    config = _published_config(task, agent, env)
    if preset == 'default':
        return config
    if preset not in get_args(PresetName):
        raise FQLError(f'no preset {preset!r}; there are {", ".join(get_args(PresetName))}')
    return dataclasses.replace(
        config, agent=dataclasses.replace(config.agent, **_strong_settings(task, agent))
    )


def _strong_settings(task: Task, agent: str) -> dict[str, Any]:
    # Returns of several steps of FQL are worse than of one on a task from states, and better on all
    # from images; QC-FQL's are of actions that its policy proposes together.
    if task.name == OWN_TASK:
        raise FQLError(
            f'preset strong is not for data of your own: give --horizon {STRONG_HORIZON}, for '
            'images with --agent fql, for states with --agent qc_fql and an alpha that you tune'
        )
    of = 'fql' if task.has_images else 'qc_fql'
    if agent != of:
        kind = 'images' if of == 'fql' else 'states'
        raise FQLError(
            f'preset strong is of agent {of} for tasks from {kind}: give --agent {of}, '
            'or leave out the preset'
        )
    if agent == 'fql':
        return {'horizon': STRONG_HORIZON}
    if ('fql', task.dataset) not in PRESETS:
        raise FQLError(
            f"preset strong of agent {agent} takes FQL's published settings, "
            f'and {task.name} has none'
        )
    names = {field.name for field in dataclasses.fields(AGENT_CONFIGS[agent])}
    published = PRESETS['fql', task.dataset].settings
    shared = {name: value for name, value in published.items() if name in names}
    return {'horizon': STRONG_HORIZON} | shared


def _published_config(task: Task, agent: str, env: str) -> TrainConfig:
    if task.name == QUICKSTART_TASK:
        return quickstart_config(agent)
    if task.name in QUICKSTART_FAR_TASKS:
        return _far_config(task, agent)
    if task.name == SMALL_PUZZLE_TASK:
        return _small_puzzle_config(agent)
    # Some agents were published online only.
    preset = {**ONLINE_PRESETS, **PRESETS}.get((agent, task.dataset))
    settings = preset.settings if preset else UNTUNED.get(agent, {})
    config = dataclasses.replace(AGENT_CONFIGS[agent](), **settings)
    if task.name == OWN_TASK:
        config_of_own = TrainConfig(
            task=task.name, env=env, agent=config, online=online_defaults(task, agent)
        )
        return config_of_own if env else dataclasses.replace(config_of_own, eval_interval=0)
    return TrainConfig(
        task=task.name,
        dataset=task.dataset,
        steps=500_000 if task.has_images or task.returns else 1_000_000,
        frame_stack=3 if task.has_images else 1,
        agent=config,
        online=online_defaults(task, agent),
    )


def quickstart_config(agent: str = 'fql') -> TrainConfig:
    """Small enough for two processor cores and a few minutes: 32x32 frames, 50 steps to the goal.

    Fewer shifts than the paper's, since 3 pixels are almost a cell of this maze. FQL has returns of
    5 steps: with returns of one, success rises and falls along a run (docs/steadiness.md).
    """
    return TrainConfig(
        task=QUICKSTART_TASK,
        dataset=QUICKSTART_DATASET,
        steps=3_000,
        batch_size=128,
        frame_stack=1,
        shift_probability=0.1,
        log_interval=100,
        eval_interval=500,
        eval_episodes=20,
        save_interval=500,
        agent=_quickstart_agent(agent),
        online=online_defaults(find_task(QUICKSTART_TASK), agent),
    )


def _far_config(task: Task, agent: str) -> TrainConfig:
    """The quickstart's data, and a goal 130 steps away, which is farther than its discount sees.

    Values span twice as much, so FQL's alpha is twice the quickstart's.
    """
    near = quickstart_config(agent)
    settings: dict[str, Any] = {'alpha': 1.0} if agent == 'fql' else {}
    return dataclasses.replace(
        near,
        task=task.name,
        steps=4_000,
        agent=dataclasses.replace(near.agent, discount=0.99, **settings),
        online=online_defaults(task, agent),
    )


def _small_puzzle_config(agent: str) -> TrainConfig:
    """Small enough for two processor cores and seven minutes; FQL with 1-step returns."""
    return TrainConfig(
        task=SMALL_PUZZLE_TASK,
        dataset=SMALL_PUZZLE_DATASET,
        steps=5_000,
        batch_size=128,
        shift_probability=0.1,
        log_interval=100,
        eval_interval=1_000,
        eval_episodes=20,
        save_interval=1_000,
        agent=_small_agent(agent, {'fql': {'alpha': 100.0}}, lr=1e-3, tau=0.02, hidden_dim=256),
        online=online_defaults(find_task(SMALL_PUZZLE_TASK), agent),
    )


def _quickstart_agent(name: str) -> AgentConfig:
    settings: dict[str, dict[str, Any]] = {
        'fql': {'alpha': 0.5, 'horizon': 5},
        'fbrac': {'alpha': 0.5},
        'qc_fql': {'alpha': 0.5},
        'rebrac': {'alpha_actor': 0.1},
    }
    return _small_agent(name, settings, lr=5e-4, tau=0.05, hidden_dim=128)


def _small_agent(
    name: str, settings: Mapping[str, Mapping[str, Any]], lr: float, tau: float, hidden_dim: int
) -> AgentConfig:
    """An agent of a small task, with the settings of its name; goals are 15 to 50 steps away."""
    return dataclasses.replace(
        AGENT_CONFIGS[name](),
        lr=lr,
        discount=0.98,
        tau=tau,
        hidden_dims=3 * (hidden_dim,),
        encoder=EncoderConfig(size='impala_debug'),
        **settings.get(name, {}),
    )
