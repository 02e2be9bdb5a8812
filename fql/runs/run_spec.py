"""The file that describes a run: what determines its networks, its id, and package versions."""

import dataclasses
import importlib.metadata
import math
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
from fql.agents.configs import Spec
from fql.errors import FQLError
from fql.runs.run_folder import RunFolder
from fql.settings.train_config import (
    RESUMABLE_FIELDS,
    TrainConfig,
    config_from_dict,
    config_to_dict,
)

T = TypeVar('T')
FORMAT_VERSION = 2
ObservationType = Literal['uint8', 'float32']
PACKAGES = (
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'dm-pix'),
    *('tensorflow', 'tensorflow-cpu', 'numpy', 'ogbench', 'mujoco'),
)
"""Distributions whose versions are recorded."""


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
    def has_images(self) -> bool:
        """Whether observations are images, or include images."""
        return self.shapes.has_images

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
        return Spec(self.observation_shape, self.action_dim)


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
