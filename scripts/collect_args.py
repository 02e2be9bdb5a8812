"""The arguments of `fql collect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_pipeline.collection.recipes import ManipulationType, MazeType
from fql.errors import FQLError
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Collect:
    """Collect a dataset with OGBench's scripted oracles.

    fql collect visual-cube-single-v0 --episodes 100 --val-episodes 10
    fql collect puzzle-3x3-v0 --dataset-type noisy
    fql collect visual-pointmaze-medium-v0 --dataset-type stitch --frame-size 32

    The result is an .npz file of OGBench's format. Environments are OGBench's cube-single,
    cube-double, cube-triple, cube-quadruple, scene, puzzle-3x3, puzzle-4x4, puzzle-4x5, puzzle-4x6,
    and pointmaze-medium, pointmaze-large, pointmaze-giant, pointmaze-teleport. With visual- before
    the name, observations are images. (fql train has tasks for point mazes from states, see fql
    tasks pointmaze; data of visual-pointmaze are for fql pretrain and fql export-tfds.)

    Numbers that are not given are those of OGBench's dataset of that name. A million images take
    a day on two cores without a GPU (about 10 a second; without images 1,000), so begin
    with few episodes. To continue an interrupted collection, repeat the command, also with
    another number of episodes.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='ENV')]
    """The environment, such as visual-cube-single-v0, or 'module:id' for one that `module`
    registers: the way to another camera. A custom id has to contain cube, scene, puzzle or
    pointmaze, and to begin with visual- if observations are images."""
    dataset_type: ManipulationType | MazeType | None = None
    """Cube, scene and puzzle: play (follows plans; the default) or noisy (reacts to the state, with
    much noise). Point maze: navigate (from goal to goal; the default), stitch (short ways), explore
    (random directions) or roam (navigate with goals anywhere, as in the quickstart)."""
    episodes: int | None = None
    """Trajectories to collect. OGBench: 1000; cube-triple and puzzle-4x5 3000, cube-quadruple and
    puzzle-4x6 5000; point maze: navigate 1000 (giant 500), stitch 5000, explore 10000."""
    val_episodes: int = 0
    """Trajectories of the validation file, NAME-val.npz; OGBench has a tenth of EPISODES."""
    episode_steps: int | None = None
    """Transitions in a trajectory, which has one row more. OGBench: 1000; point maze: navigate 1000
    (giant 2000), stitch 200, explore 500."""
    noise: float | None = None
    """Noise of the oracle. OGBench: 0.1; point maze: 0.5, explore 1.0."""
    p_random_action: float | None = None
    """Probability of a uniformly random action instead of the oracle's. OGBench: noisy 0.1, of
    the puzzles 0.2; else 0."""
    frame_size: int | None = None
    """Width and height of images; default 64."""
    env_kwargs: str = '{}'
    """More arguments of the environment, as JSON: '{"pixel_transparent_arm": false}' shows the
    arm."""
    seed: int = 0
    """Trajectory i depends on the seed, on i and on the settings above, except the numbers of
    episodes; it does not depend on the number of workers."""
    workers: int = 0
    """Processes that collect (0: one for each processor)."""
    env_step_seconds: float = 300.0
    """Longest time that a step of an environment may take. One that takes longer hangs: its process
    is replaced and the episode is repeated once."""
    out: Path | None = None
    """The file to write; default: collected/NAME.npz in the data folder."""
    overwrite: bool = False
    """Replace files that exist; otherwise they are kept, and only the other one is collected."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if self.out is not None and self.out.suffix != '.npz':
            raise FQLError(f'the file to collect into must end in .npz: {self.out}')
