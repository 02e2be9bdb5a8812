"""Reads OGBench `.npz` files block by block and refuses invalid ones.

A file holds whole trajectories, one row per state. The last row of a trajectory has `terminals`
set, and the action stored there is not used. Users' files may also have `rewards` and `masks`,
which define a task, and the arrays that `table.py` describes.
Source: https://github.com/seohongpark/ogbench
"""

import errno
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import read_npy_header
from data_pipeline.observations import NO_KEYS
from data_pipeline.source_split import SourceSplit
from data_pipeline.sources.source_files import (
    FileState,
    describe_file,
    format_of,
    taken_from,
    unchanged,
)
from data_pipeline.sources.table import table_columns, table_split

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class NpzMember:
    """One array of an `.npz` file, as its header describes it."""

    path: Path
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    state: FileState

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without its header."""
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self) -> Iterator[np.ndarray]:
        """The rows in order, in read-only blocks of about 4 MiB.

        Raises:
            DataError: the compressed data are damaged; zip's checksum is compared with the last
                block. Or the file has changed since its header was read.
        """
        row_bytes = self.nbytes // self.shape[0]
        rows_per_block = max(1, _BLOCK_BYTES // row_bytes)
        with (
            _faults_of(self.path),
            unchanged(self.path, self.state),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.file) as stream,
        ):
            read_npy_header(stream)
            for start in range(0, self.shape[0], rows_per_block):
                rows = min(rows_per_block, self.shape[0] - start)
                data = stream.read(rows * row_bytes)
                yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def read_members(
    path: Path, keys: Mapping[str, str] = NO_KEYS
) -> tuple[dict[str, NpzMember], list[str]]:
    """The arrays of a file that a store can use, by their headers alone; and all other names.

    Args:
        keys: which arrays are the observations, see `table_columns`.

    Raises:
        DataError: no such file, a damaged one, or one that lacks a key.
    """
    with _faults_of(path), zipfile.ZipFile(path) as archive:
        state = FileState.of(path)
        # NumPy reads members without the ending, too.
        held = {file.removesuffix('.npy'): file for file in archive.namelist()}
        columns = table_columns(str(path), held.keys(), keys)
        members = {
            name: _read_member(path, state, archive, key, held[key])
            for name, key in columns.items()
        }
    return members, sorted(held.keys() - set(columns.values()))


def npz_splits(source: Path, keys: Mapping[str, str] = NO_KEYS) -> dict[str, SourceSplit]:
    """The `train` split of an OGBench file, and `val` where a `-val.npz` lies beside it.

    Args:
        keys: which arrays are the observations, see `table_columns`.

    Raises:
        DataError: see `read_members` and `table_split`.
    """
    files = {'train': source, 'val': source.with_name(f'{source.stem}-val.npz')}
    return {
        split: _npz_split(file, keys)
        for split, file in files.items()
        if split == 'train' or os.path.lexists(file)
    }


def _npz_split(path: Path, keys: Mapping[str, str]) -> SourceSplit:
    members, others = read_members(path, keys)
    return table_split(str(path), taken_from(describe_file(path), keys), members, others)


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turn what zipfile, zlib and NumPy raise on an unreadable file into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EINVAL:  # A damaged directory sent zipfile before the file's start.
            raise DataError(f'{path}: damaged or not an .npz file: bytes are missing') from error
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    # zipfile raises RuntimeError for encrypted and for unsupported archives.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        if other := format_of(path):
            raise DataError(f'{path}: not an .npz file but {other}') from error
        raise DataError(f'{path}: damaged or not an .npz file: {error}') from error


def _read_member(
    path: Path, state: FileState, archive: zipfile.ZipFile, name: str, file: str
) -> NpzMember:
    entry = archive.getinfo(file)
    names = [other.removesuffix('.npy') for other in archive.namelist()]
    _check(path, names.count(name) == 1, f'{name} is there more than once')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f'{name} has an unknown compression')
    with archive.open(entry) as stream:
        shape, fortran_order, dtype = read_npy_header(stream)
        header_bytes = stream.tell()
    _check(path, not dtype.hasobject, f'{name} holds Python objects; save it as plain numbers')
    _check(path, not fortran_order, f'{name} is in Fortran order; save np.ascontiguousarray of it')
    member = NpzMember(path, file, shape, dtype, state)
    # Compared before anything is read or allocated according to the header.
    if header_bytes + member.nbytes != entry.file_size:
        raise ValueError(f'{name} is not as long as its header says')
    return member


def _check(path: Path, is_sound: bool | np.bool_, fault: str) -> None:
    if not is_sound:
        raise DataError(f'{path}: {fault}')
