"""Published hyperparameters, by agent and environment, and the settings that a run starts from.

Sources: the README and the configuration defaults of the FQL repository at commit 719d044 (Park,
Li, Levine 2025), those of the Q-chunking repository at 48283b4 (Li, Zhou, Levine 2025), and, where
said, the README of Value Flows. What none of them gives is not tuned.
"""

import dataclasses
from typing import Any

from fql.agents.configs import (
    AGENT_CONFIGS,
    AgentConfig,
    EncoderConfig,
)
from fql.envs.tasks import OWN_TASK, QUICKSTART_TASK, Task
from fql.training.config import TrainConfig

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ('fql', 'visual-cube-single'): {'alpha': 300.0},
    ('fql', 'visual-cube-double'): {'alpha': 100.0},
    ('fql', 'visual-scene'): {'alpha': 100.0},
    ('fql', 'visual-puzzle-3x3'): {'alpha': 300.0},
    ('fql', 'visual-puzzle-4x4'): {'alpha': 300.0},
    ('fql', 'antmaze-large'): {'alpha': 10.0, 'q_agg': 'min'},
    ('fql', 'antmaze-giant'): {'alpha': 10.0, 'q_agg': 'min', 'discount': 0.995},
    ('fql', 'humanoidmaze-medium'): {'alpha': 30.0, 'discount': 0.995},
    ('fql', 'humanoidmaze-large'): {'alpha': 30.0, 'discount': 0.995},
    ('fql', 'antsoccer-arena'): {'alpha': 10.0, 'discount': 0.995},
    ('fql', 'cube-single'): {'alpha': 300.0},
    ('fql', 'cube-double'): {'alpha': 300.0},
    ('fql', 'scene'): {'alpha': 300.0},
    ('fql', 'puzzle-3x3'): {'alpha': 1000.0},
    ('fql', 'puzzle-4x4'): {'alpha': 1000.0},
    ('iql', 'humanoidmaze-medium'): {'alpha': 10.0, 'discount': 0.995},
    ('iql', 'visual-cube-single'): {'alpha': 1.0},
    # Value Flows' README.
    ('iql', 'visual-cube-double'): {'alpha': 0.3, 'discount': 0.995},
    ('iql', 'visual-scene'): {'alpha': 10.0},
    ('iql', 'visual-puzzle-3x3'): {'alpha': 10.0},
    ('rebrac', 'humanoidmaze-medium'): {
        'alpha_actor': 0.01,
        'alpha_critic': 0.01,
        'discount': 0.995,
    },
    ('rebrac', 'visual-cube-single'): {'alpha_actor': 1.0, 'alpha_critic': 0.0},
    # Value Flows' README.
    ('rebrac', 'visual-cube-double'): {
        'alpha_actor': 0.1,
        'alpha_critic': 0.0,
        'discount': 0.995,
    },
    ('rebrac', 'visual-scene'): {'alpha_actor': 0.3, 'alpha_critic': 0.01},
    ('rebrac', 'visual-puzzle-3x3'): {'alpha_actor': 0.1, 'alpha_critic': 0.003},
    ('ifql', 'humanoidmaze-medium'): {'discount': 0.995, 'num_samples': 32},
    ('ifql', 'visual-cube-single'): {'num_samples': 32},
    ('ifql', 'visual-cube-double'): {'num_samples': 32, 'discount': 0.995},
    ('sac', 'humanoidmaze-medium'): {'discount': 0.995},
    ('qc_fql', 'cube-triple'): {'alpha': 100.0},
    ('qc', 'cube-triple'): {'num_samples': 32},
}
"""What differs from an agent's defaults, by agent and environment."""


def has_preset(agent: str, task: Task) -> bool:
    """Whether `default_config` was tuned for the task: by the sources, or for the quickstart."""
    is_published = task.dataset.endswith(('-navigate-v0', '-play-v0'))
    return (task.name == QUICKSTART_TASK and agent == 'fql') or (
        is_published and (agent, task.env) in PRESETS
    )


def default_config(task: Task, agent: str = 'fql') -> TrainConfig:
    """The published settings for a task; those for its environment, or the agent's defaults, where
    there are none.
    """
    if task.name == QUICKSTART_TASK:
        return quickstart_config(agent)
    config = dataclasses.replace(AGENT_CONFIGS[agent](), **PRESETS.get((agent, task.env), {}))
    if task.name == OWN_TASK:
        return TrainConfig(task=task.name, eval_interval=0, agent=config)
    has_images = task.env.startswith('visual-')
    return TrainConfig(
        task=task.name,
        dataset=task.dataset,
        steps=500_000 if has_images else 1_000_000,
        frame_stack=3 if has_images else 1,
        agent=config,
    )


def quickstart_config(agent: str = 'fql') -> TrainConfig:
    """Small enough for two processor cores and a few minutes: 32x32 frames, 60 steps to the goal.

    Fewer shifts than the paper's, since 3 pixels are almost a cell of this maze.
    """
    return TrainConfig(
        task=QUICKSTART_TASK,
        dataset='visual-pointmaze-quickstart-navigate-v0',
        steps=5_000,
        batch_size=128,
        frame_stack=1,
        shift_probability=0.1,
        log_interval=100,
        eval_interval=1_000,
        eval_episodes=20,
        save_interval=1_000,
        agent=_quickstart_agent(agent),
    )


def _quickstart_agent(name: str) -> AgentConfig:
    settings: dict[str, Any] = {
        'fql': {'alpha': 0.5},
        'fbrac': {'alpha': 0.5},
        'qc_fql': {'alpha': 0.5},
        'rebrac': {'alpha_actor': 0.1},
    }.get(name, {})
    return dataclasses.replace(
        AGENT_CONFIGS[name](),
        lr=5e-4,
        discount=0.98,
        tau=0.05,
        hidden_dims=(128, 128, 128),
        encoder=EncoderConfig(size='impala_debug'),
        **settings,
    )
