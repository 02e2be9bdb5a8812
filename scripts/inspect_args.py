"""The arguments of `fql inspect`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from data_pipeline.replay_store import is_replay
from fql.augmentation_config import AugmentationConfig
from fql.errors import FQLError
from fql.output import check_new, check_new_picture
from fql.runs.run_folder import RunFolder, steps_to_read
from fql.runs.run_spec import read_spec
from fql.settings.dataset_paths import dataset_path, task_dataset_path
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class InspectData:
    """Print what a frame store holds, and the rewards of its tasks.

    fql inspect data visual-cube-single-play-v0 --verify --png cube.png

    Rewards are those of all tasks of a known dataset, and of every other task for which a run has
    used it.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the prepared dataset; or the folder of a run's replay, RUN/replay."""
    verify: bool = False
    """First read all arrays, labels and cached latents, and compare them with their checksums."""
    png: Path | None = None
    """Where to draw some frames; NAME-histograms.png beside it gets lengths and actions. Existing
    files are not overwritten."""
    data_dir: DataDir = ''

    @property
    def histograms(self) -> Path | None:
        """The file beside `png` for the second page."""
        return self.png and self.png.with_name(f'{self.png.stem}-histograms{self.png.suffix}')

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new_picture(self.png)
        check_new_picture(self.histograms)
        if not is_replay(Path(self.dataset)):
            dataset_path(self.dataset, self.data_dir)


@dataclass(frozen=True)
class InspectBatch:
    """Write the batch that one update of a run sees, shifted and augmented.

    fql inspect batch runs/cube --step 7 --out batch.npz --png batch.png
    fql inspect batch --task visual-cube-single-play-singletask-task1-v0 --step 7 --seed 0
        --out batch.npz

    With --task, it is the batch of a run of FQL with the task's settings and those given here.
    """

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar='RUN')] = None
    """Run folder of fql train, whose settings are taken."""
    task: str = ''
    """The task, in place of a run."""
    step: int = 1
    """Which update, as in train.csv; the first one is update 1."""
    out: Path | None = None
    """Where to write the arrays, .npz; an existing file is not overwritten."""
    png: Path | None = None
    """Where to draw the first transitions; an existing file is not overwritten."""
    data_dir: DataDir = ''
    seed: int | None = None
    """The run's seed; default: 0."""
    dataset: str | None = None
    """As for fql train."""
    batch_size: int | None = None
    """As for fql train."""
    frame_stack: int | None = None
    """As for fql train."""
    shift_probability: float | None = None
    """As for fql train."""
    horizon: int | None = None
    """As for fql train: steps from an observation to the next."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run that are given."""
        names = ('seed', 'dataset', 'batch_size', 'frame_stack', 'shift_probability', 'horizon')
        given = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        changed = {'augmentation': self.augmentation} if self.augmentation.is_on else {}
        return {**given, **changed}

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if self.out is None and self.png is None:
            raise FQLError('nothing to write: give --out batch.npz, --png batch.png, or both')
        check_new(self.out)
        check_new_picture(self.png)
        if self.step == 0:
            raise FQLError('--step 0 is before the first update, which is 1')
        if (self.run is None) == (not self.task):
            raise FQLError('name a run folder, or a task with --task, and not both')
        if self.run is None:
            task_dataset_path(self.task, self.dataset or '', self.data_dir)
            return
        if self.settings:
            given = ', '.join(name.replace('_', '-') for name in self.settings)
            raise FQLError(f'the settings of {self.run} are taken; leave out {given}')
        config = read_spec(RunFolder(self.run)).config
        if config.online.online_steps and self.step > config.steps:
            raise FQLError(
                f'update {self.step:,} is of the online phase, whose batches are also of its '
                f'replay; the number of updates before it is {config.steps:,}'
            )
        task_dataset_path(config.task, config.dataset, self.data_dir or config.data_dir)


@dataclass(frozen=True)
class InspectCheckpoint:
    """Print a checkpoint's step, parameter count and digest as JSON.

    The digest is SHA-256 over path, dtype, shape and bytes of every leaf of the training state:
    two runs whose digests agree are in the same state, bit for bit.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        folder = RunFolder(self.run)
        read_spec(folder)
        steps_to_read(folder.checkpoints, self.step)


@dataclass(frozen=True)
class InspectCritic:
    """Print and draw how a run's critics value its data.

    fql inspect critic runs/maze --png critic.png

    Where the action gap, by which the best of some actions exceeds their mean, is smaller than the
    critics' disagreement, their ranking of actions is unreliable. In mazes the picture
    maps values and best directions.
    """

    run: tyro.conf.Positional[Path]
    """Run folder of fql train."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    states: int = 1024
    """How many states of the training data, drawn by the run's seed. If it has fewer, all."""
    png: Path | None = None
    """Where to draw; an existing file is not overwritten."""
    data_dir: Annotated[str, tyro.conf.arg(metavar='DIR')] = ''
    """Data folder; default: the run's."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new_picture(self.png)
        folder = RunFolder(self.run)
        config = read_spec(folder).config
        steps_to_read(folder.checkpoints, self.step)
        task_dataset_path(config.task, config.dataset, self.data_dir or config.data_dir)
