"""The layout of a run's folder, and the checks of folders."""

import os
from dataclasses import dataclass
from pathlib import Path

from encoders.folder_names import name_fault
from fql.errors import FQLError

EXPORTED = 'policy.json'
"""Only the folder of an exported policy has this file."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; everything it writes lies under `path`."""

    path: Path

    @property
    def exists(self) -> bool:
        """Whether the folder is that of a run or of a pretraining."""
        return self.spec.exists() or self.pretrain_spec.exists()

    @property
    def spec(self) -> Path:
        """Configuration, shapes and versions, JSON."""
        return self.path / 'config.json'

    @property
    def pretrain_spec(self) -> Path:
        """The same of a pretraining, JSON."""
        return self.path / 'pretraining.json'

    @property
    def data(self) -> Path:
        """Checksums of the dataset that the run is trained on, JSON."""
        return self.path / 'data.json'

    @property
    def wandb_id(self) -> Path:
        """The run's id at Weights & Biases."""
        return self.path / 'wandb-id.txt'

    @property
    def encoder(self) -> Path:
        """The saved encoder that a pretraining ends with."""
        return self.path / 'encoder'

    @property
    def checkpoints(self) -> Path:
        """One folder for each step, written by Orbax."""
        return self.path / 'checkpoints'

    @property
    def damaged(self) -> Path:
        """Checkpoints that were found damaged at a resume."""
        return self.path / 'damaged-checkpoints'

    @property
    def lock(self) -> Path:
        """The trainer's lock."""
        return self.path / 'trainer.lock'

    @property
    def watch_lock(self) -> Path:
        """The lock of `fql evaluate --watch`."""
        return self.path / 'watcher.lock'

    @property
    def non_finite(self) -> Path:
        """The batch and the losses of an update whose loss was not finite."""
        return self.path / 'non-finite'

    @property
    def train_csv(self) -> Path:
        """Metrics of updates."""
        return self.path / 'train.csv'

    @property
    def eval_csv(self) -> Path:
        """Metrics of evaluations."""
        return self.path / 'eval.csv'

    @property
    def timing_csv(self) -> Path:
        """Updates a second, which differ in any two runs."""
        return self.path / 'timing.csv'

    @property
    def timing_tensorboard(self) -> Path:
        """The same as event files."""
        return self.path / 'tensorboard' / 'timing'

    @property
    def online_csv(self) -> Path:
        """Success and return of the episodes of the online phase, by environment steps."""
        return self.path / 'online.csv'

    @property
    def online_tensorboard(self) -> Path:
        """The same as event files."""
        return self.path / 'tensorboard' / 'online'

    @property
    def replay(self) -> Path:
        """The record of the environments of the online phase, see `data_pipeline.replay`."""
        return self.path / 'replay'

    @property
    def online_warmup(self) -> Path:
        """How far the online phase is while it has made no update, and so has no checkpoint."""
        return self.replay / 'warmup.json'

    @property
    def train_tensorboard(self) -> Path:
        """Metrics of updates as event files."""
        return self.path / 'tensorboard' / 'train'

    @property
    def eval_tensorboard(self) -> Path:
        """Metrics of evaluations as event files."""
        return self.path / 'tensorboard' / 'eval'

    @property
    def videos(self) -> Path:
        """Rollouts, GIF."""
        return self.path / 'videos'

    @property
    def evaluations(self) -> Path:
        """Each evaluation's episodes, JSON."""
        return self.path / 'evaluations'

    @property
    def learning_curve(self) -> Path:
        """Success and losses against updates, PNG."""
        return self.path / 'learning_curve.png'


def finished_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; some may have been damaged since.

    An empty folder is none: the checkpoint of its step can be written there.
    """
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir() and not _is_empty(path))
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:  # Deleted by its trainer meanwhile.
        return True
    except OSError:  # Who reads what is in it will say why that fails.
        return False


def check_path(path: Path) -> None:
    """Raise FQLError if a folder is a dead link, or Orbax could not read what it wrote there."""
    if path.is_symlink() and not path.exists():
        raise FQLError(f'{path} is a link to {os.readlink(path)}, which does not exist')
    if fault := name_fault(path):
        raise FQLError(fault)


def check_new_folder(out: Path) -> None:
    """Raise FQLError if a new folder `out` cannot be written, or would lie among checkpoints."""
    check_path(out)
    for parent in out.absolute().parents:
        run = RunFolder(parent.parent)
        if run.exists and parent == run.checkpoints:
            raise FQLError(f'{parent} is for checkpoints alone; name another folder')


def steps_to_read(folder: Path, step: int | None) -> list[int]:
    """`finished_steps`, of which there must be some, and `step` among them if it is given.

    Raises:
        FQLError: there is no such checkpoint; names the existing steps.
    """
    check_is_run(folder.parent)
    if not folder.is_dir():
        raise FQLError(f'no checkpoints in {folder}')
    steps = finished_steps(folder)
    if not steps:
        raise FQLError(f'no finished checkpoint in {folder}')
    if step is not None and step not in steps:
        raise FQLError(f'no checkpoint of update {step} in {folder}; there are {steps}')
    return steps


def is_exported(path: Path) -> bool:
    """Whether the folder is an exported policy, see `fql.policies.exported_policy`."""
    return (path / EXPORTED).exists()


def check_is_run(path: Path) -> None:
    """Raise FQLError if the folder is an exported policy, which has settings as a run has."""
    if is_exported(path):
        raise FQLError(
            f'{path} is an exported policy, which fql.load_policy reads; name a run folder'
        )
