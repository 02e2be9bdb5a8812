"""The tasks by OGBench's names, and the hyperparameters that the paper gives for them."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from fql.config import OWN_TASK, AgentConfig, TrainConfig
from fql.errors import FQLError

DATASET_TYPES = {
    'pointmaze-quickstart': ('navigate',),
    'antmaze-medium': ('navigate', 'stitch', 'explore'),
    'antmaze-large': ('navigate', 'stitch', 'explore'),
    'antmaze-giant': ('navigate', 'stitch'),
    'antmaze-teleport': ('navigate', 'stitch', 'explore'),
    'humanoidmaze-medium': ('navigate', 'stitch'),
    'humanoidmaze-large': ('navigate', 'stitch'),
    'humanoidmaze-giant': ('navigate', 'stitch'),
    'cube-single': ('play', 'noisy'),
    'cube-double': ('play', 'noisy'),
    'cube-triple': ('play', 'noisy'),
    'cube-quadruple': ('play', 'noisy'),
    'scene': ('play', 'noisy'),
    'puzzle-3x3': ('play', 'noisy'),
    'puzzle-4x4': ('play', 'noisy'),
    'puzzle-4x5': ('play', 'noisy'),
    'puzzle-4x6': ('play', 'noisy'),
}
"""Environments with visual and state-based single-task variants, and their datasets."""

NUM_TASKS = 5
QUICKSTART_ENV = 'pointmaze-quickstart'
QUICKSTART_TASK = f'visual-{QUICKSTART_ENV}-navigate-singletask-v0'
QUICKSTART_MODULE = 'fql.envs.pointmaze'


@dataclass(frozen=True)
class Task:
    """A single task on one dataset; of `OWN_TASK`, all but the name is empty.

    Attributes:
        name: `[visual-]ENV-TYPE-singletask[-taskN]-v0`.
        env: `[visual-]ENV`, for instance visual-cube-single.
        dataset: `[visual-]ENV-TYPE-v0`; the tasks of an environment share it.
        env_id: Gymnasium's id of the environment, with the module that registers it.
        label_env_id: the same for the state-based twin, which defines rewards and masks and
            needs no OpenGL.
    """

    name: str
    env: str
    dataset: str
    env_id: str
    label_env_id: str


def task_names() -> list[str]:
    """Every known task."""
    names = []
    for env, types in DATASET_TYPES.items():
        suffixes = ['', *(f'-task{i + 1}' for i in range(NUM_TASKS))]
        for prefix in ('visual-',) if env == QUICKSTART_ENV else ('visual-', ''):
            for dataset_type in types:
                for suffix in suffixes[:1] if env == QUICKSTART_ENV else suffixes:
                    names.append(f'{prefix}{env}-{dataset_type}-singletask{suffix}-v0')
    return names


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        FQLError: when there is none, with the nearest names.
    """
    if name == OWN_TASK:
        return Task(name, env='', dataset='', env_id='', label_env_id='')
    names = task_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise FQLError(f'unknown task {name!r}; the nearest are {", ".join(nearest)}')
    env_and_type, suffix = name.split('-singletask')
    env, _ = env_and_type.rsplit('-', 1)
    module = QUICKSTART_MODULE if env.endswith(QUICKSTART_ENV) else 'ogbench'
    return Task(
        name=name,
        env=env,
        dataset=f'{env_and_type}-v0',
        env_id=f'{module}:{env}-singletask{suffix}',
        label_env_id=f'{module}:{env.removeprefix("visual-")}-singletask{suffix}',
    )


PAPER_HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    'visual-cube-single': {'alpha': 300.0},
    'visual-cube-double': {'alpha': 100.0},
    'visual-scene': {'alpha': 100.0},
    'visual-puzzle-3x3': {'alpha': 300.0},
    'visual-puzzle-4x4': {'alpha': 300.0},
    'antmaze-large': {'alpha': 10.0, 'q_agg': 'min'},
    'antmaze-giant': {'alpha': 10.0, 'q_agg': 'min', 'discount': 0.995},
    'humanoidmaze-medium': {'alpha': 30.0, 'discount': 0.995},
    'humanoidmaze-large': {'alpha': 30.0, 'discount': 0.995},
    'cube-single': {'alpha': 300.0},
    'cube-double': {'alpha': 300.0},
    'scene': {'alpha': 300.0},
    'puzzle-3x3': {'alpha': 1000.0},
    'puzzle-4x4': {'alpha': 1000.0},
}
"""What differs from `AgentConfig`'s defaults (arXiv 2502.02538, hyperparameter tables)."""


def has_own_hyperparameters(task: Task) -> bool:
    """Whether `default_config` was tuned for the task: by the paper, or for the quickstart."""
    is_of_paper = task.dataset.endswith(('-navigate-v0', '-play-v0'))
    return task.name == QUICKSTART_TASK or (is_of_paper and task.env in PAPER_HYPERPARAMETERS)


def default_config(task: Task) -> TrainConfig:
    """The paper's settings for a task; those for its environment, or `AgentConfig`'s, where the
    paper has none.
    """
    if task.name == QUICKSTART_TASK:
        return QUICKSTART_CONFIG
    if task.name == OWN_TASK:
        return TrainConfig(task=task.name, eval_interval=0)
    agent = dataclasses.replace(AgentConfig(), **PAPER_HYPERPARAMETERS.get(task.env, {}))
    has_images = task.env.startswith('visual-')
    return TrainConfig(
        task=task.name,
        dataset=task.dataset,
        steps=500_000 if has_images else 1_000_000,
        frame_stack=3 if has_images else 1,
        agent=agent,
    )


QUICKSTART_CONFIG = TrainConfig(
    task=QUICKSTART_TASK,
    dataset=find_task(QUICKSTART_TASK).dataset,
    steps=5_000,
    batch_size=128,
    frame_stack=1,
    shift_probability=0.1,
    log_interval=100,
    eval_interval=1_000,
    eval_episodes=20,
    save_interval=1_000,
    agent=AgentConfig(
        lr=5e-4,
        discount=0.98,
        tau=0.05,
        alpha=0.5,
        hidden_dims=(128, 128, 128),
        encoder='impala_debug',
    ),
)
"""Small enough for two processor cores and a few minutes: 32x32 frames, some 60 steps to the goal.

Fewer shifts than the paper's, since 3 pixels are almost a cell of this maze.
"""
