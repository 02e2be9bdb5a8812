"""The manifest of a store: its sources, and every array's shape, type and checksum."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.action_range import action_range_from_json
from data_pipeline.array_names import missing_arrays
from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError
from data_pipeline.files import load_array
from data_pipeline.observations import OBSERVATIONS, is_observation
from data_pipeline.schema import from_json, load_json

FORMAT_VERSION = 1
_DTYPE = re.compile(r'[<>|][biuf][0-9]{1,2}')
_SOURCE_FIELDS = {'path': str, 'bytes': int, 'sha256': str}


class NewerFormatError(ValueError):
    """The store was made by a newer version of this code."""


@dataclass(frozen=True)
class ArrayEntry:
    """The `.npy` file of one array.

    Attributes:
        shape: of the array.
        dtype: `np.dtype.str`.
        file_bytes: size of the file, its header included.
        sha256: of the array's bytes, without the header.
    """

    shape: tuple[int, ...]
    dtype: str
    file_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        try:
            is_known = bool(_DTYPE.fullmatch(self.dtype)) and np.dtype(self.dtype).itemsize > 0
        except TypeError:
            is_known = False
        if not is_known or min(self.shape, default=0) < 0 or self.nbytes > self.file_bytes:
            raise ValueError(f'no array: {self.dtype} {self.shape} in {self.file_bytes} bytes')

    @property
    def nbytes(self) -> int:
        """Bytes of the array, which are the last ones of the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SplitEntry:
    """One split: all its arrays have as many rows."""

    rows: int
    trajectories: int
    arrays: Mapping[str, ArrayEntry]

    def __post_init__(self) -> None:
        _check_names(*self.arrays)
        if missing := missing_arrays(self.arrays):
            raise ValueError(f'no array {", ".join(missing)}')
        if OBSERVATIONS in self.arrays and sum(map(is_observation, self.arrays)) > 1:
            raise ValueError(f'{OBSERVATIONS} is one array, and there are others of it')
        _check_names(*(n.partition('.')[2] for n in self.arrays if is_observation(n) and '.' in n))
        for name, entry in self.arrays.items():
            if entry.shape[:1] != (self.rows,):
                raise ValueError(f'{name} has shape {entry.shape} in a split of {self.rows} rows')


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`.

    Attributes:
        format_version: FORMAT_VERSION of the code that wrote the store.
        dataset: name of the dataset.
        sources: by split, `SourceSplit.description`, and lines for the user as `notes`.
        splits: by name.
        versions: of the packages that wrote the store.
        created: time of writing, ISO 8601.
    """

    format_version: int
    dataset: str
    sources: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, SplitEntry]
    versions: Mapping[str, str]
    created: str

    def __post_init__(self) -> None:
        _check_names(self.dataset, *self.splits)
        if self.sources.keys() != self.splits.keys():
            raise ValueError(f'sources {list(self.sources)} of splits {list(self.splits)}')
        for split, source in self.sources.items():
            for name, kind in _SOURCE_FIELDS.items():
                if type(source.get(name)) is not kind:
                    raise ValueError(f'sources.{split}.{name} must be {kind.__name__}')
            notes = source.get('notes', [])
            if type(notes) is not list or not all(type(note) is str for note in notes):
                raise ValueError(f'sources.{split}.notes must be a list of lines')
            scaled = action_range_from_json(source.get('action_range'))
            width = self.splits[split].arrays['actions'].shape[1:]
            if scaled is not None and (len(scaled.low),) != width:
                raise ValueError(f'a range of {len(scaled.low)} actions, of {width} in the data')


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        NewerFormatError: its format is newer.
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    values = load_json(path)
    version = values.get('format_version') if isinstance(values, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormatError(f'store format {version} is newer than this code; update it')
    return from_json(Manifest, values)


def open_array(path: Path, entry: ArrayEntry, *, mapped: bool = True) -> np.ndarray:
    """The array in a file, which must match its entry; the checksum is not compared.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or does not match the entry.
    """
    if (size := path.stat().st_size) != entry.file_bytes:
        raise ValueError(f'{path.name} has {size} bytes, not {entry.file_bytes}')
    array = load_array(path, mapped=mapped)
    if array.shape != entry.shape or array.dtype.str != entry.dtype:
        raise ValueError(f'{path.name} is {array.dtype} {array.shape}')
    return array


def _check_names(*names: str) -> None:
    for name in names:
        try:
            check_name(name)
        except DataError as error:
            raise ValueError(str(error)) from error
