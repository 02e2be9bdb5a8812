"""HDF5 files of rows in D4RL's layout, and reading of HDF5 files in general.

A D4RL file holds `observations`, `actions`, `rewards`, `terminals`, `timeouts`, `infos/*` and
`metadata/*`, a row a step; see `d4rl_layout`. Without `timeouts` and `rewards`, or with `masks`,
the arrays mean what they mean in an `.npz` file (`table.py`).
Source: https://github.com/Farama-Foundation/D4RL
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data_pipeline.errors import DataError, first_line
from data_pipeline.observations import is_observation
from data_pipeline.source_split import SourceSplit
from data_pipeline.sources.rows import lay_out
from data_pipeline.sources.source_files import FileState, describe_file, taken_from, unchanged
from data_pipeline.sources.table import (
    FOLLOWING,
    Flags,
    TableLayout,
    lay_out_table,
    table_columns,
    table_split,
)

_BLOCK_BYTES = 4 << 20
_CACHE_BYTES = 64 << 20  # so that no chunk up to this size is decompressed twice
_D4RL_NAME = re.compile(r'(antmaze|pen|door|hammer|relocate)-')


@dataclass(frozen=True)
class HdfColumn:
    """One dataset of an HDF5 file, as its header describes it.

    `is_whole` is whether all of it was ever written; HDF5 reads the rest as zeros.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_whole: bool
    state: FileState

    @property
    def row(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of a row."""
        return self.shape[1:], self.dtype

    @property
    def rows(self) -> int:
        """Number of rows; a single value has none."""
        return self.shape[0] if self.shape else 0

    def read(self, first: int = 0) -> np.ndarray:
        """The rows from `first` on, of which -1 is the last, at once.

        Raises:
            DataError: the data are damaged.
        """
        with open_hdf5(self.path) as file, unchanged(self.path, self.state):
            return file[self.key][first % self.shape[0] :]

    def blocks(self) -> Iterator[np.ndarray]:
        """The rows in order, in blocks of about 4 MiB.

        Raises:
            DataError: the data are damaged.
        """
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
        with open_hdf5(self.path) as file, unchanged(self.path, self.state):
            dataset = file[self.key]
            for start in range(0, self.shape[0], rows):
                yield dataset[start : start + rows]


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An open file; exceptions of h5py while it is open become a DataError."""
    try:
        with h5py.File(path, 'r', rdcc_nbytes=_CACHE_BYTES) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = first_line(error)
        raise DataError(f'{path}: cannot be read as HDF5: {reason}') from error


def list_columns(group: h5py.File | h5py.Group) -> dict[str, HdfColumn]:
    """All datasets of a file or below a group, by their relative path.

    Raises:
        DataError: a link is broken, or a dataset lies in another file.
    """
    path, columns = Path(group.file.filename), {}
    state = FileState.of(path)

    def add(prefix: str, item: h5py.Group, above: tuple[h5py.Group, ...]) -> None:
        for name in item:
            child = open_item(item, name)
            if isinstance(child, h5py.Dataset):
                key = f'{group.name.rstrip("/")}/{prefix}{name}'
                columns[prefix + name] = HdfColumn(
                    path, key, child.shape, child.dtype, _is_whole(child), state
                )
            elif isinstance(child, h5py.Group) and child not in above:  # Links can go in circles.
                add(f'{prefix}{name}/', child, (*above, child))

    add('', group, (group,))
    return columns


def _is_whole(dataset: h5py.Dataset) -> bool:
    if not dataset.size:
        return True
    if dataset.chunks is None:
        return dataset.id.get_storage_size() > 0
    lengths = zip(dataset.shape, dataset.chunks, strict=True)
    return dataset.id.get_num_chunks() == math.prod(-(-length // step) for length, step in lengths)


def check_written(columns: Iterable[HdfColumn]) -> None:
    """Raise DataError if a part of one was never written, as when its writer ended early."""
    for column in columns:
        if not column.is_whole:
            raise DataError(
                f'{column.path}: a part of {column.key} was never written, and would be read as '
                'zeros; did the program that wrote it end early?'
            )


def open_item(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype:
    """The item of this name in a group.

    Items in other files, as virtual datasets mostly are, are refused: HDF5 reads zeros where the
    other file is missing, and the checksum of this file does not cover it.

    Raises:
        DataError: it is a broken link, a virtual dataset, or lies in another file.
    """
    place = f'{group.file.filename}: {group.name.rstrip("/")}/{name}'
    item = group.get(name)
    if item is None:
        raise DataError(f'{place} is a broken link')
    is_elsewhere = item.file.filename != group.file.filename
    if isinstance(item, h5py.Dataset):
        if item.is_virtual:
            raise DataError(f'{place} is a virtual dataset; write its values as one of its own')
        is_elsewhere |= bool(item.external)
    if is_elsewhere:
        raise DataError(f'{place} lies in another file; copy it into this one')
    return item


def d4rl_splits(source: Path, dataset: str, keys: Mapping[str, str]) -> dict[str, SourceSplit]:
    """The `train` split of an HDF5 file of rows, and `val` where a `-val.hdf5` lies beside it.

    Args:
        source: the file.
        dataset: the dataset's name: for antmaze, terminals do not end trajectories.
        keys: which datasets are the observations, see `table_columns`.

    Raises:
        DataError: the file cannot be read; see also `table_split`.
    """
    files = {'train': source, 'val': source.with_name(f'{source.stem}-val{source.suffix}')}
    return {
        split: _d4rl_split(file, dataset, keys)
        for split, file in files.items()
        if split == 'train' or os.path.lexists(file)
    }


def d4rl_layout(origin: str, flags: Flags, ends_at_terminals: bool) -> TableLayout:
    """The rows and labels of a store by D4RL's rule.

    Row i is a transition iff i < n - 1 and not timeouts[i]. Its next observation is the stored one
    or, without one, that of row i + 1, even if that belongs to another trajectory: the mask then
    excludes its value. Masks are 1 - terminals. Trajectories end at timeouts, where a stored next
    observation is not the next row's, and with `ends_at_terminals` at terminals.
    """
    assert flags.timeouts is not None
    if flags.rewards is None:
        raise DataError(f'{origin}: has no rewards')
    is_transition = ~flags.timeouts
    is_transition[-1] = False
    ends = ~is_transition
    if flags.jumps is not None:
        ends |= flags.jumps
    if ends_at_terminals:
        ends |= flags.terminals
    labels = {'rewards': flags.rewards, 'masks': 1 - flags.terminals.astype(np.float32)}
    note = (
        f'by the rule of D4RL, {np.count_nonzero(is_transition):,} of {len(ends):,} rows are '
        'transitions: all except timeouts and the last; masks are 1 - terminals'
    )
    rows = lay_out(ends, is_transition, offset=0 if flags.jumps is not None else 1)
    return TableLayout(rows, labels, (note,))


def _d4rl_split(path: Path, dataset: str, keys: Mapping[str, str]) -> SourceSplit:
    with open_hdf5(path) as file:
        columns = list_columns(file)
    names = table_columns(str(path), columns.keys(), keys)
    names |= {name: f'infos/{name}' for name in ('qpos', 'qvel') if f'infos/{name}' in columns}
    table = {name: columns[key] for name, key in names.items()}
    if not keys and 'observations' not in table:
        held = ', '.join(sorted(columns)[:10]) or 'nothing'
        raise DataError(
            f"{path}: has neither observations (D4RL's layout) nor data/demo_0 (robomimic's); "
            f'it has {held}'
        )
    check_written(
        column for name, column in table.items() if name == 'actions' or is_observation(name)
    )
    is_d4rl = _D4RL_NAME.match(dataset) is not None
    if is_d4rl and not {'timeouts', FOLLOWING} & table.keys():
        raise DataError(
            f'{path}: has no timeouts, so that the ends of its trajectories are unknown'
        )
    layout: Callable[[str, Flags], TableLayout] = lay_out_table
    if 'timeouts' in table and 'masks' not in table and (is_d4rl or 'rewards' in table):
        ends_at_terminals = not dataset.startswith('antmaze-')
        layout = functools.partial(d4rl_layout, ends_at_terminals=ends_at_terminals)
    others = {
        'metadata' if key.startswith('metadata/') else key
        for key in columns.keys() - set(names.values())
    }
    return table_split(str(path), taken_from(describe_file(path), keys), table, others, layout)
