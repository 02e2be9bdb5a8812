"""Rewards and masks of a task, by OGBench's relabelling, computed once and kept in the store.

Five tasks share the frames of one dataset, so labels are small arrays beside the frames. A spawned
process computes them, so that MuJoCo and TensorFlow never share a process (they crash together).

    <store>/labels/<task>/<split>/rewards.npy, masks.npy
    <store>/labels/<task>/<split>/labels.json    what determines them, and their checksums

Each use compares them with their checksums. Damaged ones, and those of another version of this code
or of OGBench, are computed again.
"""

import dataclasses
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.array_names import LABEL_ARRAYS
from data_pipeline.environment import choose_opengl, construct, source_files
from data_pipeline.errors import DamagedError, DataError
from data_pipeline.files import atomic_folder, file_sha256, write_json
from data_pipeline.schema import from_json, load_json
from data_pipeline.store.frame_store import FrameStore
from data_pipeline.store.manifest import ArrayEntry, open_array
from data_pipeline.store.verification import StoredArray, check_array
from data_pipeline.store.writer import write_array
from data_pipeline.workers import WorkerGroup

_RECORD = 'labels.json'


@dataclass(frozen=True)
class LabelOrigin:
    """Everything that determines labels.

    Attributes:
        env_id: the task's environment.
        ogbench: version of the package, which can change the labels.
        data: checksums of the arrays that labels are computed from, by name; of an environment of
            the user's, 'module:id', also of its source, which can change the goals under the same
            id.
    """

    env_id: str
    ogbench: str
    data: Mapping[str, str]


@dataclass(frozen=True)
class LabelRecord:
    """`labels.json`: the arrays by name, and what determines them."""

    origin: LabelOrigin
    arrays: Mapping[str, ArrayEntry]

    def __post_init__(self) -> None:
        if set(self.arrays) != set(LABEL_ARRAYS):
            raise ValueError(f'arrays {", ".join(self.arrays)}, not {", ".join(LABEL_ARRAYS)}')


def task_labels(store: FrameStore, split: str, env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masks of a single-task environment for every row of a split.

    The labels are those of `ogbench.relabel_utils.relabel_dataset` for the state that a row stores
    (reward: number of goals met minus number of goals; mask: 0 where all are met, else 1). A pixel
    environment is replaced by its state-based twin, which has the same goals and needs no OpenGL.

    Args:
        store: an open frame store.
        split: name of a split of it.
        env_id: Gymnasium id of a single-task OGBench environment, bare or as `module:id`.

    Returns:
        rewards (n,) float32 and masks (n,) float32, cached in `labels/<bare id>/<split>/` where
        the store can be written.

    Raises:
        DataError: no such split or environment, the data are not of this environment, or the
            process that labels them died.
        DamagedError: an array that labels are computed from differs from what was written.
    """
    if split not in store.splits:
        raise DataError(f'{store.path}: no split {split!r}, only {", ".join(store.splits)}')
    folder = store.path / 'labels' / env_id.rpartition(':')[2] / split
    used = store.splits[split].info
    origin = LabelOrigin(
        env_id=env_id,
        ogbench=version('ogbench'),
        data={name: store.checksums[split][name] for name in used}
        | {file.name: file_sha256(file) for file in source_files(env_id)},
    )
    try:
        labels = _read_labels(folder, origin)
    except DamagedError as error:
        from tqdm import tqdm  # Here, so that benchmarks run without it.

        tqdm.write(f'damaged labels are computed again: {error}')
        labels = None
    if labels is None:
        for name in used:
            check_array(store.stored_array(split, name))
        labels = _compute_in_process(store, split, env_id)
        _write_labels(folder, origin, labels)
    return labels


def labelled_tasks(store: FrameStore, split: str) -> list[str]:
    """The `env_id` of every call of `task_labels` whose result the store keeps."""
    tasks = []
    for path in sorted((store.path / 'labels').glob(f'*/{split}/{_RECORD}')):
        with suppress(DamagedError):
            if (record := _read_record(path)) is not None:
                tasks.append(record.origin.env_id)
    return tasks


def stored_labels(store: FrameStore) -> list[StoredArray]:
    """All labels that the store keeps, except those that would be computed again.

    Raises:
        DamagedError: a record of them cannot be read.
    """
    paths = sorted((store.path / 'labels').glob(f'*/*/{_RECORD}'))
    records = {path.parent: _read_record(path) for path in paths}
    return [
        array
        for folder, record in records.items()
        if record is not None
        for array in _stored_arrays(folder, record)
    ]


def relabel(
    dataset: str, action_width: int, info: dict[str, np.ndarray], env_id: str
) -> tuple[np.ndarray, np.ndarray]:
    """Compute `task_labels` from the arrays. Imports MuJoCo: call it in a separate process.

    Raises:
        DataError: see `task_labels`.
    """
    choose_opengl(is_rendering=False)
    from gymnasium.error import Error
    from ogbench.relabel_utils import relabel_dataset

    try:
        env = construct(env_id, ob_type='states')
        env.reset(seed=0)
    except (Error, ImportError, TypeError, AssertionError) as error:
        raise DataError(f'environment {env_id} cannot be made: {error}') from error
    if getattr(env.unwrapped, '_reward_task_id', None) is None:
        raise DataError(
            f'environment {env_id} has no single task; use an id like '
            'cube-single-singletask-task1-v0'
        )
    _check_widths(dataset, env_id, _widths(action_width, info), _expected_widths(env))
    labelled = dict(info)
    try:
        relabel_dataset(env_id.rpartition(':')[2], env, labelled)
    except ValueError as error:
        raise DataError(f'environment {env_id}: {error}') from error
    return labelled['rewards'], labelled['masks']


def _compute_in_process(
    store: FrameStore, split: str, env_id: str
) -> tuple[np.ndarray, np.ndarray]:
    data = store.splits[split]
    info = {name: np.asarray(array) for name, array in data.info.items()}
    dataset = store.manifest.dataset
    with WorkerGroup() as group:
        group.start(_run_worker, dataset, data.actions.shape[1], info, env_id)
        try:
            fault, labels = group.connections[0].recv()
        except (EOFError, OSError):
            raise DataError(
                f'{store.path}: the process that computes its labels for {env_id} died, '
                'perhaps because memory ran out'
            ) from None
    if fault is not None:
        raise DataError(fault)
    return labels


def _run_worker(
    connection: Connection,
    dataset: str,
    action_width: int,
    info: dict[str, np.ndarray],
    env_id: str,
) -> None:
    """Send (fault, labels), one of which is None."""
    try:
        connection.send((None, relabel(dataset, action_width, info, env_id)))
    except DataError as error:
        connection.send((str(error), None))
    except Exception:
        connection.send((f'labelling for {env_id} failed\n{traceback.format_exc()}', None))


def _widths(action_width: int, info: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {'actions': action_width, **{name: array.shape[1] for name, array in info.items()}}


def _expected_widths(env: Any) -> dict[str, int]:
    model = env.unwrapped.model
    widths = {'actions': env.action_space.shape[0], 'qpos': model.nq, 'qvel': model.nv}
    if hasattr(env.unwrapped, '_num_buttons'):
        widths['button_states'] = env.unwrapped._num_buttons
    return widths


def _check_widths(
    dataset: str, env_id: str, found: Mapping[str, int], expected: Mapping[str, int]
) -> None:
    """Check the arrays' numbers of columns; qvel, which no label needs, may be missing."""
    prefix = f'dataset {dataset} is not of environment {env_id}'
    for name, width in expected.items():
        if name in found and found[name] != width:
            raise DataError(f'{prefix}: {name} has {found[name]} columns, {env_id} has {width}')
        if name not in found and name != 'qvel':
            raise DataError(f'dataset {dataset} has no {name}, which labels of {env_id} need')


def _read_labels(folder: Path, origin: LabelOrigin) -> tuple[np.ndarray, np.ndarray] | None:
    """The labels in a folder; None if there are none of this origin.

    Raises:
        DamagedError: they differ from what was written.
    """
    path = folder / _RECORD
    if not path.exists():
        return None
    record = _read_record(path)
    if record is None or record.origin != origin:
        return None
    for array in _stored_arrays(folder, record):
        check_array(array)
    try:
        rewards, masks = (
            open_array(folder / f'{name}.npy', record.arrays[name], mapped=False)
            for name in LABEL_ARRAYS
        )
    except (OSError, ValueError) as error:
        raise DamagedError(f'{folder}: {error}; {_remedy(folder)}') from error
    return rewards, masks


def _read_record(path: Path) -> LabelRecord | None:
    """The record in a file; None if it has not the fields of one, as of another version.

    Raises:
        DamagedError: it cannot be read, or is not JSON.
    """
    try:
        values = load_json(path)
    except (OSError, ValueError) as error:
        raise DamagedError(f'{path} cannot be read: {error}; {_remedy(path.parent)}') from error
    try:
        return from_json(LabelRecord, values)
    except ValueError:
        return None


def _stored_arrays(folder: Path, record: LabelRecord) -> list[StoredArray]:
    return [
        StoredArray.of(folder / f'{name}.npy', entry, _remedy(folder))
        for name, entry in record.arrays.items()
    ]


def _remedy(folder: Path) -> str:
    return f'delete {folder}; its arrays are then computed again'


def _write_labels(folder: Path, origin: LabelOrigin, labels: tuple[np.ndarray, np.ndarray]) -> None:
    """Store labels for other runs if possible; this run continues in any case."""
    # Runs that start together compute the same labels; the first one writes them.
    with suppress(DamagedError):
        if _read_labels(folder, origin) is not None:
            return
    # A read-only store, a full disk, or another run was faster.
    with suppress(OSError), atomic_folder(folder, replace=folder.exists()) as new:
        entries = {
            name: write_array(new / f'{name}.npy', array)
            for name, array in zip(LABEL_ARRAYS, labels, strict=True)
        }
        write_json(new / _RECORD, dataclasses.asdict(LabelRecord(origin, entries)))
