"""What lies where in a run's folder, and the file that says what the run is."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from data_pipeline.action_range import ActionRange, action_range_from_json
from data_pipeline.files import write_json
from fql.agents.configs import Spec
from fql.errors import FQLError
from fql.training.config import Processes, TrainConfig, config_from_dict, config_to_dict

FORMAT_VERSION = 1
Resume = Literal['never', 'auto', 'always']
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'dm-pix'),
    *('tensorflow', 'tensorflow-cpu', 'numpy', 'ogbench', 'mujoco'),
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run; everything it writes lies under `path`."""

    path: Path

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
        """Under which Weights & Biases knows the run."""
        return self.path / 'wandb-id.txt'

    @property
    def encoder(self) -> Path:
        """The saved encoder that a pretraining ends with."""
        return self.path / 'encoder'

    @property
    def checkpoints(self) -> Path:
        """One folder a step, written by Orbax."""
        return self.path / 'checkpoints'

    @property
    def damaged(self) -> Path:
        """Checkpoints that were found damaged at a resume."""
        return self.path / 'damaged-checkpoints'

    @property
    def lock(self) -> Path:
        """Held by the trainer."""
        return self.path / 'trainer.lock'

    @property
    def watch_lock(self) -> Path:
        """Held by `fql evaluate --watch`."""
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
        """Updates a second, which no two runs have the same."""
        return self.path / 'timing.csv'

    @property
    def timing_tensorboard(self) -> Path:
        """The same as event files."""
        return self.path / 'tensorboard' / 'timing'

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
        observation_shape: of one stacked observation, (h, w, c) or (d,).
        observation_dtype: 'uint8' or 'float32'.
        action_dim: size of an action.
        action_range: what the actions of the environment are, where it is not [-1, 1].
    """

    config: TrainConfig
    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_dim: int
    action_range: ActionRange | None = None

    @property
    def images(self) -> bool:
        """Whether observations are images."""
        return self.shapes.images

    @property
    def observation_bytes(self) -> int:
        """Bytes of a stacked observation."""
        return math.prod(self.observation_shape) * np.dtype(self.observation_dtype).itemsize

    @property
    def shapes(self) -> Spec:
        """What the agent sees and does."""
        return Spec(self.observation_shape, self.observation_dtype, self.action_dim)


def choose_folder(run_dir: Path | None, resume: Path | None, name: str) -> tuple[Path, Resume]:
    """The run folder that `--run-dir` and `--resume` ask for, and whether to continue it.

    Args:
        name: begins the name of a folder of which neither says anything.

    Returns:
        The folder; and to continue the run there ('always'), to refuse if there is one ('never'),
        or to continue it if there is one ('auto').

    Raises:
        FQLError: they contradict each other.
    """
    if resume is None:
        return run_dir or Path('runs') / f'{name}-{datetime.now():%Y%m%d-%H%M%S}', 'never'
    if resume == Path('auto'):
        if run_dir is None:
            raise FQLError('--resume auto needs --run-dir')
        return run_dir, 'auto'
    if run_dir not in (None, resume):
        raise FQLError('--resume names the run folder; leave --run-dir out')
    return resume, 'always'


def check_processes(processes: Processes, run_dir: Path | None, resume: Path | None) -> None:
    """Raises FQLError if the settings of several processes make no sense.

    That is also so where no folder is named that all of them would take.
    """
    number, count = processes.process_id, processes.num_processes
    if not processes.coordinator:
        if (number, count) != (0, 1):
            raise FQLError('--num-processes and --process-id need --coordinator')
        return
    if run_dir is None and resume is None:
        raise FQLError('several processes need --run-dir, or --resume: all of them use one folder')
    _, _, port = processes.coordinator.rpartition(':')
    if processes.coordinator != 'auto' and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise FQLError(
            f'--coordinator {processes.coordinator}: not HOST:PORT, such as 10.0.0.1:1234, nor auto'
        )
    if not 0 <= number < count:
        raise FQLError(f'--process-id {number} of --num-processes {count}: they count from 0')


def versions() -> dict[str, str]:
    """Versions of Python, of the installed packages that numbers depend on, and of this code."""
    packages = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # TensorFlow goes by two names.
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


def write_spec(run: RunFolder, spec: RunSpec) -> None:
    """Writes `config.json` whole or not at all."""
    values = {
        'format_version': FORMAT_VERSION,
        'config': config_to_dict(spec.config),
        'observation_shape': list(spec.observation_shape),
        'observation_dtype': spec.observation_dtype,
        'action_dim': spec.action_dim,
        'action_range': dataclasses.asdict(spec.action_range) if spec.action_range else None,
        'versions': versions(),
    }
    write_json(run.spec, values)


def read_json(path: Path, format_version: int, spec: type, without: str) -> dict[str, Any]:
    """The values of a file that `write_json` has written.

    Args:
        format_version: the one that they have to name.
        spec: the dataclass whose fields they have to have.
        without: what is said of a folder that has no such file.

    Raises:
        FQLError: no such file, or one that cannot be understood.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise FQLError(f'{path.parent} {without}: it has no {path.name}') from None
    except ValueError as error:
        raise FQLError(f'{path} is not valid JSON: {error}') from None
    found = values.get('format_version') if isinstance(values, dict) else None
    if found != format_version:
        raise FQLError(f'{path}: format version {found}, this program reads {format_version}')
    for field in dataclasses.fields(spec):
        if field.name not in values:
            raise FQLError(f'{path}: no field {field.name!r}')
    return cast(dict[str, Any], values)


def read_spec(run: RunFolder) -> RunSpec:
    """Reads `config.json`.

    Raises:
        FQLError: when the folder is no run, or its file cannot be understood.
    """
    values = read_json(run.spec, FORMAT_VERSION, RunSpec, 'is not a run folder')
    try:
        action_range = action_range_from_json(values['action_range'])
    except ValueError as error:
        raise FQLError(f'{run.spec}: action_range: {error}') from None
    return RunSpec(
        config=config_from_dict(values['config'], run.spec),
        observation_shape=tuple(values['observation_shape']),
        observation_dtype=values['observation_dtype'],
        action_dim=values['action_dim'],
        action_range=action_range,
    )
