"""Recipes of collections: environments, numbers of episodes and noise, as in OGBench.

Source: `data_gen_scripts/commands.sh` (Park et al., ICLR 2025, arXiv 2410.20092).
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from data_pipeline.errors import DataError

ManipulationType = Literal['play', 'noisy']
MazeType = Literal['navigate', 'stitch', 'explore', 'roam']
MANIPULATION_TYPES: tuple[ManipulationType, ...] = get_args(ManipulationType)
MAZE_TYPES: tuple[MazeType, ...] = get_args(MazeType)

MANIPULATION_ENVS = (
    *(f'cube-{number}' for number in ('single', 'double', 'triple', 'quadruple')),
    'scene',
    *(f'puzzle-{size}' for size in ('3x3', '4x4', '4x5', '4x6')),
)
MAZE_ENVS = tuple(f'pointmaze-{size}' for size in ('medium', 'large', 'giant', 'teleport'))

_EPISODES = {'triple': 3000, 'quadruple': 5000, '4x5': 3000, '4x6': 5000}


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an episode, besides its index.

    Attributes:
        env_id: `[visual-]ENV-v0` with ENV of MANIPULATION_ENVS or MAZE_ENVS, or 'module:id' where
            importing `module` registers it. A custom id has to contain 'cube', 'scene', 'puzzle' or
            'pointmaze', which chooses the oracle, and to begin with 'visual-' if and only if
            its observations are images.
        dataset_type: the oracle's behaviour, see `data_pipeline.collection.oracles`; one of
            MANIPULATION_TYPES or MAZE_TYPES.
        episode_steps: transitions in an episode, which has one more row.
        noise: of the oracle: for mazes, its standard deviation in actions in [-1, 1]; for 'noisy',
            the largest one of any episode; for 'play', relative to the largest step.
        p_random_action: probability of a uniformly random action in place of the oracle's.
        env_kwargs: other arguments of the environment's constructor, as JSON values.
        seed: of the whole collection.
        split: 'train' or 'val': episodes of equal index differ between the two.
    """

    env_id: str
    dataset_type: str
    episode_steps: int
    noise: float
    p_random_action: float = 0.0
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    split: str = 'train'

    @property
    def bare_id(self) -> str:
        """The id without its module."""
        return self.env_id.rpartition(':')[2]

    @property
    def is_maze(self) -> bool:
        """Whether the maze's oracle acts, not a manipulation oracle."""
        return 'pointmaze' in self.bare_id

    @property
    def is_visual(self) -> bool:
        """Whether observations are images, which need OpenGL."""
        return self.bare_id.startswith('visual-')

    def check(self) -> None:
        """Raise DataError if a setting is unusable."""
        if not any(word in self.bare_id for word in ('cube', 'scene', 'puzzle', 'pointmaze')):
            raise DataError(_unknown_environment(self.env_id))
        if self.env_id.removeprefix('visual-') in (*MANIPULATION_ENVS, *MAZE_ENVS):
            raise DataError(f'{self.env_id}: the version is missing: {self.env_id}-v0')
        types: tuple[str, ...] = MAZE_TYPES if self.is_maze else MANIPULATION_TYPES
        if self.dataset_type not in types:
            raise DataError(
                f'{self.env_id} has no data of type {self.dataset_type!r}, only {", ".join(types)}'
            )
        if 'ob_type' in self.env_kwargs:
            raise DataError("ob_type cannot be set: ids that begin with 'visual-' give images")
        if self.episode_steps < 1:
            raise DataError(f'episode_steps must be at least 1, not {self.episode_steps}')
        if self.seed < 0 or not self.noise >= 0:
            raise DataError(f'seed and noise must not be negative: {self.seed}, {self.noise}')
        if not 0 <= self.p_random_action <= 1:
            raise DataError(f'p_random_action must be in [0, 1], not {self.p_random_action}')


def ogbench_recipe(env_id: str, dataset_type: str | None = None) -> tuple[Recipe, int]:
    """OGBench's recipe for a dataset, and its number of training episodes.

    Args:
        env_id: see `Recipe`.
        dataset_type: default 'play', for mazes 'navigate'.

    Returns:
        The recipe with seed 0, and the number of episodes. OGBench has no 'explore' and no 'roam'
        data of the point maze: the numbers are those of its ant and of 'navigate'.

    Raises:
        DataError: there is no oracle for this environment, or it has no such data.
    """
    draft = Recipe(env_id, dataset_type or '', episode_steps=1000, noise=0.1)
    if not dataset_type:
        draft = dataclasses.replace(draft, dataset_type='navigate' if draft.is_maze else 'play')
    draft.check()
    if not draft.is_maze:
        p_random_action = 0.2 if 'puzzle' in draft.bare_id else 0.1
        episodes = [number for size, number in _EPISODES.items() if size in draft.bare_id]
        return (
            dataclasses.replace(
                draft, p_random_action=p_random_action if draft.dataset_type == 'noisy' else 0.0
            ),
            episodes[0] if episodes else 1000,
        )
    if draft.dataset_type == 'stitch':
        episode_steps, noise, number = 200, 0.5, 5000
    elif draft.dataset_type == 'explore':
        episode_steps, noise, number = 500, 1.0, 10_000
    elif 'giant' in draft.bare_id:
        episode_steps, noise, number = 2000, 0.5, 500
    else:
        episode_steps, noise, number = 1000, 0.5, 1000
    return dataclasses.replace(draft, episode_steps=episode_steps, noise=noise), number


def dataset_name(recipe: Recipe) -> str:
    """OGBench's name of the dataset: visual-cube-single-play-v0 for visual-cube-single-v0."""
    env, separator, version = recipe.bare_id.rpartition('-v')
    if not separator:
        return f'{recipe.bare_id}-{recipe.dataset_type}'
    return f'{env}-{recipe.dataset_type}-v{version}'


def _unknown_environment(env_id: str) -> str:
    known = [
        f'{prefix}{env}-v0'
        for prefix in ('', 'visual-')
        for env in (*MANIPULATION_ENVS, *MAZE_ENVS)
    ]
    nearest = difflib.get_close_matches(env_id, known, n=3, cutoff=0.0)
    return (
        f'no oracle for environment {env_id!r}: there are some for cube, scene, puzzle and '
        f'pointmaze; the nearest names are {", ".join(nearest)}'
    )
