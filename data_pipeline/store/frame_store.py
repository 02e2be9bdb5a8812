"""The store on disk that every loader reads: memory-mapped `.npy` files, one copy of each frame.

    <store>/manifest.json           the store's sources, and the contents that it must have
    <store>/<split>/<array>.npy     split: train, val; array: observations, actions, terminals, ...

Several observations are an array each, `observations.<name>`.

`data_pipeline.store.writer` writes a store; this module opens and reads it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.array_names import INFO_ARRAYS, LABEL_ARRAYS
from data_pipeline.errors import DataError
from data_pipeline.observations import array_name, is_observation, named, pick_observations
from data_pipeline.store.manifest import Manifest, NewerFormatError, open_array, read_manifest
from data_pipeline.store.verification import StoredArray, check_array

ALIGNMENT = 64  # bytes; TensorFlow aborts the process on a tensor that is not aligned so

_REMEDY = 'prepare the dataset again, with --overwrite'


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a store. Rows are those of the source file; all arrays are read-only memmaps.

    Attributes:
        name: of the split.
        path: folder of the arrays.
        observations: (n, h, w, c) uint8 or (n, d) float32; where there are several, such arrays by
            name.
        actions: (n, a) float32 in [-1, 1].
        terminals: (n,) bool, set on the last row of each trajectory.
        info: qpos, qvel, button_states, each (n, d), where the source has them.
        labels: rewards and masks, each (n,) float32, if stored with the data; else empty.
    """

    name: str
    path: Path
    observations: Any
    actions: np.ndarray
    terminals: np.ndarray
    info: dict[str, np.ndarray]
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {
            **{array_name(name): array for name, array in named(self.observations).items()},
            'actions': self.actions,
            'terminals': self.terminals,
            **self.info,
            **self.labels,
        }

    @property
    def num_transitions(self) -> int:
        """The number of rows that are not the last of their trajectory."""
        return len(self.terminals) - int(np.count_nonzero(self.terminals))

    @property
    def valid_rows(self) -> np.ndarray:
        """(m,) int64: the rows where a transition starts, which are all except the ends."""
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
    """An open store: its folder, its manifest, and its splits by name."""

    path: Path
    manifest: Manifest
    splits: dict[str, Split]

    @property
    def checksums(self) -> dict[str, dict[str, str]]:
        """SHA-256 of every array's bytes, by split and name."""
        return {
            split: {name: array.sha256 for name, array in entry.arrays.items()}
            for split, entry in self.manifest.splits.items()
        }

    def stored_array(self, split: str, name: str) -> StoredArray:
        """One array as verification needs it."""
        path, entry = self.path / split / f'{name}.npy', self.manifest.splits[split].arrays[name]
        return StoredArray.of(path, entry, _REMEDY)

    @property
    def stored_arrays(self) -> list[StoredArray]:
        """All arrays of all splits."""
        return [
            self.stored_array(split, name)
            for split, entry in self.manifest.splits.items()
            for name in entry.arrays
        ]


def open_store(path: Path) -> FrameStore:
    """Open a finished store; read only headers and the ends of trajectories.

    All indices are computed from these ends. They are therefore compared with their checksum here.

    Raises:
        DataError: there is no store, its format is newer, or files differ from the manifest.
    """
    path = Path(path)
    manifest_path = path / 'manifest.json'
    try:
        manifest = read_manifest(manifest_path)
        splits = {name: _open_split(path / name, manifest) for name in manifest.splits}
    except NewerFormatError as error:
        raise DataError(f'{path}: {error}') from error
    except FileNotFoundError as error:
        if error.filename == str(manifest_path):
            raise DataError(f'{path}: no frame store here; prepare the dataset first') from error
        raise _damaged(path, f'{error.filename} is missing') from error
    except PermissionError as error:
        raise DataError(f'{path}: {error.filename} cannot be read: {error.strerror}') from error
    except OSError as error:
        raise _damaged(path, f'{error.filename} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    store = FrameStore(path, manifest, splits)
    for name, split in splits.items():
        check_array(store.stored_array(name, 'terminals'))
        if manifest.splits[name].trajectories != len(split.lengths):
            raise _damaged(path, f'it has not as many trajectories in {name} as its manifest says')
    return store


def _open_split(folder: Path, manifest: Manifest) -> Split:
    arrays: dict[str, np.ndarray] = {
        name: open_array(folder / f'{name}.npy', entry)
        for name, entry in manifest.splits[folder.name].arrays.items()
    }
    info = {name: arrays[name] for name in INFO_ARRAYS if name in arrays}
    labels = {name: arrays[name] for name in LABEL_ARRAYS if name in arrays}
    required = (pick_observations(arrays), arrays['actions'], arrays['terminals'])
    split = Split(folder.name, folder, *required, info, labels)
    fits = {
        **{
            name: (array.dtype, array.ndim) in ((np.uint8, 4), (np.float32, 2))
            for name, array in arrays.items()
            if is_observation(name)
        },
        'actions': split.actions.dtype == np.float32 and split.actions.ndim == 2,
        'terminals': split.terminals.dtype == bool and split.terminals.ndim == 1,
        **{name: array.ndim == 2 for name, array in info.items()},
        **{name: array.dtype == np.float32 and array.ndim == 1 for name, array in labels.items()},
    }
    for name, is_fit in fits.items():
        if not is_fit:
            raise ValueError(f'{name} is {arrays[name].dtype} {arrays[name].shape}')
    return split


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(f'{path}: damaged frame store: {fault}; prepare it again, with --overwrite')
