"""The tasks: OGBench's, D4RL's of the FQL paper, the quickstart's, and one for a user's data."""

import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from data_pipeline.collection.recipes import MANIPULATION_TYPES
from fql.errors import FQLError

OWN_TASK = 'own'
"""The task of a user's environment, whose rewards and masks are part of the dataset."""

LOCOMOTION_TYPES = ('navigate', 'stitch', 'explore')
"""How OGBench's datasets of locomotion were collected, as those of manipulation were in the ways of
`MANIPULATION_TYPES`. Some environments lack official ones of some kinds."""

QUICKSTART_ENV = 'pointmaze-quickstart'
QUICKSTART_TASK = f'visual-{QUICKSTART_ENV}-navigate-singletask-v0'
QUICKSTART_FAR_TASKS = tuple(
    f'visual-{QUICKSTART_ENV}-navigate-singletask-{task}-v0' for task in ('task2', 'task3')
)
QUICKSTART_DATASET = f'visual-{QUICKSTART_ENV}-navigate-v0'
QUICKSTART_MODULE = 'fql.envs.pointmaze'

SMALL_PUZZLE_TASK = 'visual-puzzle-small-play-singletask-v0'
SMALL_PUZZLE_DATASET = 'visual-puzzle-small-play-v0'
SMALL_PUZZLE_MODULE = 'fql.envs.small_puzzle'

ANTMAZE_MODULE, ADROIT_MODULE = 'fql.envs.d4rl_antmaze', 'fql.envs.d4rl_adroit'
ANTMAZE_TASKS = tuple(
    f'antmaze-{name}-v2'
    for name in (
        *('umaze', 'umaze-diverse', 'medium-play'),
        *('medium-diverse', 'large-play', 'large-diverse'),
    )
)
ADROIT_RETURNS = {
    'pen': (96.262799, 3076.8331017826877),
    'door': (-56.512833, 2880.5693087298737),
    'hammer': (-274.856578, 12794.134825156867),
    'relocate': (-6.425911, 4233.877797728884),
}
"""D4RL's returns of random actions and of an expert."""
ADROIT_TASKS = tuple(
    f'{name}-{data}-v1' for name in ADROIT_RETURNS for data in ('human', 'cloned', 'expert')
)


@dataclass(frozen=True)
class Task:
    """A single task on one dataset; for `OWN_TASK`, everything except the name is empty.

    Attributes:
        name: OGBench's, `[visual-]ENV-TYPE-singletask[-taskN]-v0`, or D4RL's.
        dataset: `[visual-]ENV-TYPE-v0`, which the tasks of an environment share; D4RL's name.
        env_id: Gymnasium's id of the environment, with the module that registers it.
        label_env_id: the same for the state-based twin, which defines rewards and masks and
            needs no OpenGL; empty where the dataset has them itself.
        returns: the environment's returns that D4RL scores as 0 and as 100, if it does.
        reward_offset: added to the rewards of the dataset and of the replay in every batch.
    """

    name: str
    dataset: str = ''
    env_id: str = ''
    label_env_id: str = ''
    returns: tuple[float, float] | None = None
    reward_offset: float = 0.0

    @property
    def has_images(self) -> bool:
        """Whether observations are images; for `OWN_TASK` the data decide."""
        return self.name.startswith('visual-')

    @property
    def is_ogbench(self) -> bool:
        """Whether the environment takes OGBench's arguments, such as `success_timing`."""
        return self.label_env_id != ''

    def score(self, mean_return: float) -> float:
        """D4RL's normalised score of a return of the environment.

        Raises:
            ValueError: the task has none.
        """
        if self.returns is None:
            raise ValueError(f'{self.name} has no normalised score')
        low, high = self.returns
        return 100 * (mean_return - low) / (high - low)


def task_names() -> list[str]:
    """Every known task except `OWN_TASK`."""
    return list(_known_tasks())


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
        FQLError: there is none; names the nearest ones.
    """
    if name == OWN_TASK:
        return Task(name)
    tasks = _known_tasks()
    if name not in tasks:
        nearest = difflib.get_close_matches(name, tasks, n=3, cutoff=0.0)
        raise FQLError(
            f'unknown task {name!r}; the nearest are {", ".join(nearest)} (fql tasks lists all)'
        )
    return tasks[name]


@functools.cache
def _known_tasks() -> Mapping[str, Task]:
    tasks = (*_small_tasks(), *_ogbench_tasks(), *_d4rl_tasks())
    return MappingProxyType({task.name: task for task in tasks})


def _small_tasks() -> Iterator[Task]:
    """The quickstart's three, and the puzzle of the small benchmark."""
    for suffix in ('', '-task2', '-task3'):
        yield _ogbench_task(
            QUICKSTART_MODULE, f'visual-{QUICKSTART_ENV}', 'navigate', suffix, version='0'
        )
    yield _ogbench_task(SMALL_PUZZLE_MODULE, 'visual-puzzle-small', 'play', '', version='0')


def _ogbench_tasks() -> Iterator[Task]:
    """The tasks of every single-task environment that the installed OGBench registers."""
    import gymnasium
    import ogbench  # noqa: F401  (registers its environments; imports no MuJoCo)

    for env_id, spec in gymnasium.registry.items():
        entry = str(spec.entry_point)
        match = re.fullmatch(r'(.+)-singletask(-task\d+)?-v(\d+)', env_id)
        if match is None or not entry.startswith('ogbench.'):
            continue
        types: tuple[str, ...] = (*LOCOMOTION_TYPES, *MANIPULATION_TYPES)
        if entry.startswith('ogbench.locomaze.'):
            types = LOCOMOTION_TYPES
        elif entry.startswith('ogbench.manipspace.'):
            types = MANIPULATION_TYPES
        env, suffix, version = match.groups(default='')
        for dataset_type in types:
            yield _ogbench_task('ogbench', env, dataset_type, suffix, version)


def _ogbench_task(module: str, env: str, dataset_type: str, suffix: str, version: str) -> Task:
    return Task(
        name=f'{env}-{dataset_type}-singletask{suffix}-v{version}',
        dataset=f'{env}-{dataset_type}-v{version}',
        env_id=f'{module}:{env}-singletask{suffix}-v{version}',
        label_env_id=f'{module}:{env.removeprefix("visual-")}-singletask{suffix}-v{version}',
    )


def _d4rl_tasks() -> Iterator[Task]:
    for name in ANTMAZE_TASKS:
        env_id = f'{ANTMAZE_MODULE}:{name}'
        yield Task(name, dataset=name, env_id=env_id, returns=(0.0, 1.0), reward_offset=-1.0)
    for name in ADROIT_TASKS:
        returns = ADROIT_RETURNS[name.split('-')[0]]
        yield Task(name, dataset=name, env_id=f'{ADROIT_MODULE}:{name}', returns=returns)
