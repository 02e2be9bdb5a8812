"""Latents of a frozen encoder, kept beside the frames they were computed from.

    <store>/latents/<key>/recipe.json                what determines them; the key is its digest
    <store>/latents/<key>/<split>/observations.npy   (n, d)
    <store>/latents/<key>/<split>/progress.json      whose rows these are, how many, their checksum

The array grows by blocks of rows and is complete once the record counts them all. An interrupted
one is continued after the last row recorded. The loader reads it like any observations.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from data_pipeline.errors import DamagedError
from data_pipeline.files import (
    load_array,
    make_folder,
    naming,
    read_npy_header,
    sync_file,
    write_json,
    write_npy_header,
    write_text,
)
from data_pipeline.observations import is_observation
from data_pipeline.schema import read_json
from data_pipeline.store.frame_store import FrameStore, Split
from data_pipeline.store.verification import StoredArray

RECORD_ROWS = 8_192
"""Rows written between two records; at most so many are lost when the process is killed."""

_ARRAY, _RECORD = 'observations.npy', 'progress.json'
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class LatentRecord:
    """`progress.json`.

    Attributes:
        place: key and split that the array belongs to.
        rows: number of rows written.
        sha256: checksum of their bytes.
    """

    place: str
    rows: int
    sha256: str


def _place(array: Path) -> str:
    return f'{array.parents[1].name}/{array.parent.name}'


def latent_recipe(store: FrameStore, encoding: Mapping[str, Any]) -> str:
    """The recipe of the latents of a store's data, as JSON.

    Args:
        encoding: JSON values that, with the data, determine every latent.
    """
    data = {
        split: {
            name: checksum
            for name, checksum in checksums.items()
            if is_observation(name) or name == 'terminals'
        }
        for split, checksums in store.checksums.items()
    }
    return json.dumps({'encoding': dict(encoding), 'data': data}, indent=2, sort_keys=True)


def latent_folder(store: FrameStore, recipe: str) -> Path:
    """The folder of the latents of a recipe."""
    return store.path / 'latents' / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def make_latent_folder(folder: Path, recipe: str) -> None:
    """Make the folder if necessary, and write the recipe into it."""
    make_folder(folder)
    write_text(folder / 'recipe.json', recipe)


def latent_split(folder: Path, split: Split, width: int, dtype: str) -> Split | None:
    """`split` with its latents (n, width) as observations; None if they are incomplete."""
    shape = (len(split.terminals), width)
    path = folder / split.name / _ARRAY
    record = _read_record(path)
    if record is None or record.rows != shape[0]:
        return None
    try:
        latents = load_array(path, mapped=True)
    except (OSError, ValueError):
        return None
    if latents.shape != shape or latents.dtype != np.dtype(dtype):
        return None
    return dataclasses.replace(split, path=path.parent, observations=latents)


def stored_latents(folder: Path) -> list[StoredArray]:
    """The recorded rows of the latents in the folder of a recipe.

    Raises:
        DamagedError: one cannot be read.
    """
    remedy = f'delete {folder}; its arrays are then computed again'
    arrays = []
    for path in sorted(folder.glob(f'*/{_RECORD}')):
        array = path.with_name(_ARRAY)
        try:
            record = read_json(path, LatentRecord)
            if record.place != _place(array):
                raise ValueError(f'its latents are those of {record.place}')
            with array.open('rb') as file:
                shape, _, dtype = read_npy_header(file)
                start = file.tell()
        except (OSError, ValueError) as error:
            raise DamagedError(f'{path.parent} cannot be read: {error}; {remedy}') from error
        nbytes = record.rows * math.prod(shape[1:]) * dtype.itemsize
        arrays.append(StoredArray(array, start, nbytes, record.sha256, remedy))
    return arrays


class LatentWriter:
    """The array of one split while it is written; a context manager.

    Attributes:
        rows: number of rows written; above 0 from the start when a file is continued.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: str) -> None:
        """Open the array of this shape in `folder`, which is made if necessary.

        Rows that a killed process has written are kept if they are recorded and undamaged.
        """
        make_folder(folder)
        self._path = folder / _ARRAY
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._path.touch()
        self._file = self._path.open('r+b')
        write_npy_header(self._file, shape, self._dtype)
        self._data_start = self._file.tell()
        self.rows, self._digest = self._sound_rows()
        self._recorded = self.rows
        self._file.truncate(self._data_start + self.rows * self._row_bytes)
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, block: np.ndarray) -> None:
        """Write the next rows, (k, d) of the file's dtype."""
        assert block.dtype == self._dtype
        assert block.shape[1:] == self._shape[1:]
        data = np.ascontiguousarray(block).data
        with naming(self._path):
            self._file.write(data)
        self._digest.update(data)
        self.rows += len(block)
        assert self.rows <= self._shape[0]
        if self.rows - self._recorded >= RECORD_ROWS or self.rows == self._shape[0]:
            self._record()

    @property
    def _row_bytes(self) -> int:
        return self._shape[1] * self._dtype.itemsize

    def _record(self) -> None:
        # The rows must be on the disk before the record that counts them.
        sync_file(self._file)
        record = LatentRecord(_place(self._path), self.rows, self._digest.hexdigest())
        write_json(self._path.with_name(_RECORD), dataclasses.asdict(record))
        self._recorded = self.rows

    def _sound_rows(self) -> tuple[int, Any]:
        """The number of recorded rows and their running checksum; (0, new) if they are damaged."""
        record = _read_record(self._path)
        if record is not None and 0 < record.rows <= self._shape[0]:
            digest = _digest_of(self._file, record.rows * self._row_bytes)
            if digest.hexdigest() == record.sha256:
                return record.rows, digest
        return 0, hashlib.sha256()


def _digest_of(file: BinaryIO, nbytes: int) -> Any:
    """SHA-256 of the next `nbytes`, or of fewer if the file ends before."""
    digest = hashlib.sha256()
    while nbytes > 0 and (block := file.read(min(nbytes, _READ_BYTES))):
        digest.update(block)
        nbytes -= len(block)
    return digest


def _read_record(array: Path) -> LatentRecord | None:
    """The record beside an array; None if there is no readable one, or only that of another."""
    try:
        record = read_json(array.with_name(_RECORD), LatentRecord)
    except (OSError, ValueError):
        return None
    return record if record.place == _place(array) else None
