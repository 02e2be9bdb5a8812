"""The layout of a run's folder, and the file that describes the run."""

import dataclasses
import importlib.metadata
import math
import os
import platform
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from data_pipeline.action_range import ActionRange
from data_pipeline.files import write_json
from data_pipeline.observations import map_named, named
from data_pipeline.schema import from_json, load_json
from encoders.folder_names import name_fault
from fql.agents.configs import Spec
from fql.errors import FQLError
from fql.settings.train_config import (
    RESUMABLE_FIELDS,
    TrainConfig,
    config_from_dict,
    config_to_dict,
)

T = TypeVar('T')
FORMAT_VERSION = 2
EXPORTED = 'policy.json'
ObservationType = Literal['uint8', 'float32']
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'dm-pix'),
    *('tensorflow', 'tensorflow-cpu', 'numpy', 'ogbench', 'mujoco'),
)


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


@dataclass(frozen=True)
class RunSpec:
    """What determines an agent's networks and its state before the first update.

    Attributes:
        config: the run's settings.
        observation_shape: of one stacked observation, (h, w, c) or (d,); of several, by name.
        observation_dtype: 'uint8' or 'float32'; of several, by name.
        action_dim: size of an action.
        action_range: range of the environment's actions, where it is not [-1, 1].
    """

    config: TrainConfig
    observation_shape: Any
    observation_dtype: Any
    action_dim: int
    action_range: ActionRange | None = None

    @property
    def images(self) -> bool:
        """Whether observations are images, or include images."""
        return self.shapes.images

    @property
    def frame_shape(self) -> Any:
        """Shape of one observation, not stacked; of several, by name."""
        stack = self.config.frame_stack
        return map_named(lambda shape: (*shape[:-1], shape[-1] // stack), self.observation_shape)

    @property
    def observation_bytes(self) -> int:
        """Bytes of a stacked observation."""
        dtypes = named(self.observation_dtype)
        return sum(
            math.prod(shape) * np.dtype(dtypes[name]).itemsize
            for name, shape in named(self.observation_shape).items()
        )

    @property
    def shapes(self) -> Spec:
        """The agent's observations and actions."""
        return Spec(self.observation_shape, self.observation_dtype, self.action_dim)


def finished_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; some may have been damaged since."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def check_path(path: Path) -> None:
    """Raise FQLError if a folder is a dead link, or Orbax could not read what it wrote there."""
    if path.is_symlink() and not path.exists():
        raise FQLError(f'{path} is a link to {os.readlink(path)}, which does not exist')
    if fault := name_fault(path):
        raise FQLError(fault)


def check_new_folder(out: Path) -> None:
    """Raise FQLError if a new folder `out` cannot be written, or would lie among checkpoints."""
    check_path(out)
    run = RunFolder(out.absolute().parent.parent)
    if run.exists and out.absolute().parent == run.checkpoints:
        raise FQLError(f'{out.parent} is for checkpoints alone; name another --out')


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
        raise FQLError(f'no checkpoint of step {step} in {folder}; there are {steps}')
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


def versions() -> dict[str, str]:
    """Versions of Python, of the installed packages that numbers depend on, and of this code."""
    packages = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # TensorFlow has two names.
            packages[name] = importlib.metadata.version(name)
    return {'python': platform.python_version(), **packages, 'git': _git_revision()}


def _git_revision() -> str:
    """The commit of the checkout that this code runs from; empty where there is none."""
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', 'HEAD']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ''
    return done.stdout.strip()


@dataclass(frozen=True)
class _StoredSpec:
    """What `config.json` holds beside its format version; see `RunSpec`."""

    run_id: str
    config: Mapping[str, Any]
    observation_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    observation_dtype: ObservationType | Mapping[str, ObservationType]
    action_dim: int
    action_range: ActionRange | None
    versions: Mapping[str, str]


def write_spec(run: RunFolder, spec: RunSpec) -> None:
    """Write `config.json` whole or not at all."""
    values = {
        'config': config_to_dict(spec.config),
        'observation_shape': map_named(list, spec.observation_shape),
        'observation_dtype': spec.observation_dtype,
        'action_dim': spec.action_dim,
        'action_range': dataclasses.asdict(spec.action_range) if spec.action_range else None,
    }
    write_stored(run.spec, FORMAT_VERSION, values)


def read_spec(run: RunFolder) -> RunSpec:
    """Read `config.json`.

    Raises:
        FQLError: when the folder is no run, or its file cannot be understood.
    """
    stored = read_stored(run.spec, FORMAT_VERSION, _StoredSpec, 'is not a run folder')
    return RunSpec(
        config=config_from_dict(stored.config, run.spec),
        observation_shape=stored.observation_shape,
        observation_dtype=stored.observation_dtype,
        action_dim=stored.action_dim,
        action_range=stored.action_range,
    )


def write_stored(path: Path, format_version: int, values: Mapping[str, Any]) -> None:
    """Write what a run is; add to `values` the id that the file has, or a new one."""
    run_id = read_object(path)['run_id'] if path.exists() else secrets.token_hex(8)
    stored = {'format_version': format_version, 'run_id': run_id, **values, 'versions': versions()}
    write_json(path, stored)


def read_stored(path: Path, format_version: int, cls: type[T], without: str) -> T:
    """The values of a file that `write_stored` has written.

    Args:
        format_version: the one that they must have.
        cls: the dataclass of all others.
        without: the message for a folder that has no such file.

    Raises:
        FQLError: no such file, or one that cannot be understood.
    """
    if not path.exists():
        raise FQLError(f'{path.parent} {without}: it has no {path.name}')
    values = read_object(path)
    found = values.pop('format_version', None)
    if found != format_version:
        raise FQLError(f'{path}: format version {found}, this program reads {format_version}')
    try:
        return from_json(cls, values)
    except ValueError as error:
        raise FQLError(f'{path}: {error}') from None


def read_identity(path: Path) -> dict[str, Any]:
    """What a resume must not change in a run, by name, JSON values: its id, settings and shapes.

    Args:
        path: of a file that `read_stored` takes.
    """
    values = read_object(path)
    described = {
        name: value for name, value in values.items() if name not in ('format_version', 'versions')
    }
    return {
        name: value
        for name, value in _flat(described).items()
        if not (name.startswith('config.') and name.rpartition('.')[2] in RESUMABLE_FIELDS)
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f'{name}.{inner}': entry for inner, entry in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FQLError: it holds something else.
    """
    try:
        values = load_json(path)
    except ValueError as error:
        raise FQLError(f'{path} is not valid JSON: {error}') from None
    if not isinstance(values, dict):
        raise FQLError(f'{path} must hold a JSON object')
    return values
