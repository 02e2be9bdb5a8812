"""The tasks by OGBench's names."""

import difflib
from dataclasses import dataclass

from fql.errors import FQLError

OWN_TASK = 'own'
"""The task whose rewards and masks are part of the dataset; it has no environment."""

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
