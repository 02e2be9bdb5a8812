"""The settings that a run starts from: the published ones, or those for what nobody tuned."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from fql.agents.configs import AGENT_CONFIGS, AgentConfig, EncoderConfig
from fql.envs.tasks import (
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
from fql.settings.published_settings import ONLINE_PRESETS, PRESETS
from fql.settings.train_config import OnlineConfig, TrainConfig

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
    """The quickstart's data with one of its farther goals, whose discount has to reach farther.

    Values span twice as much, so FQL's alpha is twice the quickstart's. It was tried on task3, 130
    steps away.
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
