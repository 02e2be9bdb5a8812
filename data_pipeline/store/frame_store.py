"""The store on disk that every loader reads: memory-mapped `.npy` files, one copy of each frame.

    <store>/manifest.json           what the store was made of, and what it must hold
    <store>/<split>/<array>.npy     split: train, val; array: observations, actions, terminals, ...

`data_pipeline.store.writer` writes it; here it is opened, read and verified.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError
from data_pipeline.sources.base import INFO_ARRAYS, LABEL_ARRAYS

FORMAT_VERSION = 1
ALIGNMENT = 64  # bytes; TensorFlow aborts the process on a tensor that starts anywhere else
_VERIFY_BYTES = 4 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a store. Rows are those of the source file; all arrays are read-only memmaps.

    observations: (n, h, w, c) uint8 or (n, d) float32
    actions: (n, a) float32 in [-1, 1]
    terminals: (n,) bool, set on the last row of each trajectory
    info: qpos, qvel, button_states, each (n, d), where the source has them
    labels: rewards and masks, each (n,) float32, of a task of the data's own; else empty
    """

    name: str
    path: Path
    observations: np.ndarray
    actions: np.ndarray
    terminals: np.ndarray
    info: dict[str, np.ndarray]
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {
            'observations': self.observations,
            'actions': self.actions,
            'terminals': self.terminals,
            **self.info,
            **self.labels,
        }

    @property
    def num_transitions(self) -> int:
        """One for each row that is not the last of its trajectory."""
        return len(self.terminals) - int(np.count_nonzero(self.terminals))

    @property
    def valid_rows(self) -> np.ndarray:
        """(m,) int64: the rows where a transition starts, which are all but the ends."""
        return np.flatnonzero(~self.terminals)

    @property
    def first_rows(self) -> np.ndarray:
        """(n,) int64: the first row of each row's trajectory."""
        lengths = self.lengths
        return np.repeat(np.cumsum(lengths) - lengths, lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(trajectories,) int64: the number of rows of each."""
        return np.diff(np.flatnonzero(self.terminals), prepend=-1)


@dataclass(frozen=True, eq=False)
class FrameStore:
    """An open store: its folder, its manifest as read from JSON, and its splits by name."""

    path: Path
    manifest: dict[str, Any]
    splits: dict[str, Split]

    @property
    def checksums(self) -> dict[str, dict[str, str | None]]:
        """SHA-256 of every array's bytes, by split and name; None where the manifest has none."""
        return {
            split: {name: array.get('sha256') for name, array in entry['arrays'].items()}
            for split, entry in self.manifest['splits'].items()
        }


def open_store(path: Path) -> FrameStore:
    """Opens a finished store; nothing is read but headers.

    Raises:
        DataError: no store there, one of a newer format, or files not as the manifest says.
    """
    path = Path(path)
    manifest_path = path / 'manifest.json'
    try:
        manifest = json.loads(manifest_path.read_text(encoding='utf-8'))
        version = manifest['format_version']
        if version > FORMAT_VERSION:
            raise DataError(f'{path}: store format {version} is newer than this code; update it')
        check_name(manifest['dataset'])
        splits = {name: _open_split(path, name, manifest) for name in manifest['splits']}
    except FileNotFoundError as error:
        if error.filename == str(manifest_path):
            raise DataError(f'{path}: no frame store here; prepare the dataset first') from error
        raise _damaged(path, f'{error.filename} is missing') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    return FrameStore(path, manifest, splits)


def verify_store(store: FrameStore, progress: Progress | None = None) -> None:
    """Reads every array and compares it with the checksum taken when the store was made.

    Raises:
        DataError: an array that is not what was written, or no checksum in the manifest.
    """
    entries = [
        (store.path / split / f'{name}.npy', store.splits[split].arrays[name], entry)
        for split in store.splits
        for name, entry in store.manifest['splits'][split]['arrays'].items()
    ]
    advance = byte_counter(progress, sum(array.nbytes for _, array, _ in entries))
    for path, array, entry in entries:
        if 'sha256' not in entry:
            raise _damaged(store.path, 'the manifest has no checksums')
        digest = hashlib.sha256()
        try:
            with open(path, 'rb') as file:
                file.seek(entry['file_bytes'] - array.nbytes)
                while block := file.read(_VERIFY_BYTES):
                    digest.update(block)
                    advance(len(block))
        except OSError as error:
            raise _damaged(store.path, f'{path} cannot be read: {error.strerror}') from error
        if digest.hexdigest() != entry['sha256']:
            raise _damaged(store.path, f'{path} is not what was written (checksum differs)')


def _open_split(store: Path, name: str, manifest: dict[str, Any]) -> Split:
    folder = store / name
    entries = manifest['splits'][name]['arrays']
    arrays: dict[str, np.ndarray] = {
        key: _open_array(folder / f'{key}.npy', entry) for key, entry in entries.items()
    }
    info = {key: arrays[key] for key in INFO_ARRAYS if key in arrays}
    labels = {key: arrays[key] for key in LABEL_ARRAYS if key in arrays}
    required = (arrays['observations'], arrays['actions'], arrays['terminals'])
    return Split(name, folder, *required, info, labels)


def _open_array(path: Path, entry: Mapping[str, Any]) -> np.ndarray:
    if (size := path.stat().st_size) != entry['file_bytes']:
        raise ValueError(f'{path.name} has {size} bytes in place of {entry["file_bytes"]}')
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    if array.shape != tuple(entry['shape']) or array.dtype.str != entry['dtype']:
        raise ValueError(f'{path.name} is {array.dtype} {array.shape}')
    return array


def byte_counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that adds bytes to a running sum and reports it."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return advance


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(f'{path}: damaged frame store: {fault}; make it again with --overwrite')
