"""Reads OGBench `.npz` files block by block and refuses those that are not sound.

A file holds whole trajectories, one row per state. The last row of a trajectory has `terminals`
set, and the action stored there leads nowhere. Files with `rewards` and `masks` besides, which
OGBench's have not, hold a task of their own. Source: https://github.com/seohongpark/ogbench
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import read_npy_header
from data_pipeline.sources.base import (
    INFO_ARRAYS,
    LABEL_ARRAYS,
    REQUIRED_ARRAYS,
    ArraySpec,
    SourceSplit,
)

_BLOCK_BYTES = 4 << 20

_FORMATS = {
    b'\x89HDF': 'an HDF5 file',
    b'\x93NUMPY': 'a single array (.npy)',
    b'PAR1': 'a Parquet file',
    b'\x1f\x8b': 'gzip-compressed data',
    b'BZh': 'bzip2-compressed data',
    b'\xfd7zXZ': 'xz-compressed data',
    b'\x89PNG': 'a PNG image',
    b'<!DOCTYP': 'a web page',
    b'<html': 'a web page',
}
"""By the first bytes, what users have in place of an .npz."""


@dataclass(frozen=True)
class NpzMember:
    """One array of an `.npz` file, as its header describes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array, without its header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_members(path: Path) -> dict[str, NpzMember]:
    """The arrays of an OGBench file by name, checked by their headers alone.

    Raises:
        DataError: no such file, a damaged one, a required array that is missing, or an array of the
            wrong type, rank or length.
    """
    with _faults_of(path), zipfile.ZipFile(path) as archive:
        held = {name.removesuffix('.npy') for name in archive.namelist()}
        labels = LABEL_ARRAYS if held.issuperset(LABEL_ARRAYS) else ()
        names = [n for n in (*REQUIRED_ARRAYS, *INFO_ARRAYS, *labels) if n in held]
        members = {name: _read_member(path, archive, name) for name in names}
    _check_members(path, members)
    return members


def iter_blocks(member: NpzMember) -> Iterator[np.ndarray]:
    """The rows of an array in order, in read-only blocks of about 4 MiB.

    Raises:
        DataError: the compressed data are damaged; zip's checksum is compared with the last block.
    """
    row_bytes = member.nbytes // member.shape[0]
    rows_per_block = max(1, _BLOCK_BYTES // row_bytes)
    with (
        _faults_of(member.path),
        zipfile.ZipFile(member.path) as archive,
        archive.open(f'{member.name}.npy') as stream,
    ):
        read_npy_header(stream)
        for start in range(0, member.shape[0], rows_per_block):
            rows = min(rows_per_block, member.shape[0] - start)
            data = stream.read(rows * row_bytes)
            yield np.frombuffer(data, member.dtype).reshape(rows, *member.shape[1:])


def npz_splits(source: Path) -> dict[str, SourceSplit]:
    """The `train` split of an OGBench file, and `val` where a `-val.npz` lies beside it.

    Raises:
        DataError: see `read_members`.
    """
    files = {'train': source, 'val': source.with_name(f'{source.stem}-val.npz')}
    return {
        split: _npz_split(file)
        for split, file in files.items()
        if split == 'train' or file.exists()
    }


def _npz_split(path: Path) -> SourceSplit:
    members = read_members(path)
    # All others first: they tell most faults, and are read in a moment.
    members['observations'] = members.pop('observations')

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for name, member in members.items():
            for block in iter_blocks(member):
                yield name, block

    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return SourceSplit(
        origin=str(path),
        description={
            'path': str(path.resolve()),
            'bytes': path.stat().st_size,
            'sha256': digest,
        },
        arrays={name: ArraySpec(m.shape[1:], _stored_dtype(m)) for name, m in members.items()},
        rows=members['terminals'].shape[0],
        read=read,
    )


def _stored_dtype(member: NpzMember) -> np.dtype:
    if member.name == 'terminals':
        return np.dtype(bool)
    is_image = member.name == 'observations' and member.dtype == np.uint8
    if member.name in ('observations', 'actions', *LABEL_ARRAYS) and not is_image:
        return np.dtype(np.float32)
    return member.dtype


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turns what zipfile, zlib and NumPy raise over an unreadable file into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    # zipfile raises RuntimeError for encrypted and for unsupported archives.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f'{path}: {_what_it_is(path)}: {error}') from error


def _what_it_is(path: Path) -> str:
    """What a file is that cannot be read as an .npz, by its first bytes."""
    with open(path, 'rb') as file:
        start = file.read(8)
    for magic, name in _FORMATS.items():
        if start.startswith(magic):
            return f'not an .npz file but {name}'
    return 'damaged or not an .npz file'


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> NpzMember:
    entry = archive.getinfo(f'{name}.npy')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f'{name} has an unknown compression')
    with archive.open(entry) as stream:
        shape, fortran_order, dtype = read_npy_header(stream)
        header_bytes = stream.tell()
    _check(path, not dtype.hasobject, f'{name} holds Python objects; save it as plain numbers')
    _check(path, not fortran_order, f'{name} is in Fortran order; save np.ascontiguousarray of it')
    member = NpzMember(path, name, shape, dtype)
    # Compared before anything is read or allocated by what the header says.
    if header_bytes + member.nbytes != entry.file_size:
        raise ValueError(f'{name} is not as long as its header says')
    return member


def _check_members(path: Path, members: Mapping[str, NpzMember]) -> None:
    missing = [name for name in REQUIRED_ARRAYS if name not in members]
    _check(path, not missing, f'lacks {", ".join(missing)}')
    for name, member in members.items():
        is_fit, wanted = _fitness(member)
        found = f'{name} is {member.dtype} of shape {member.shape}'
        _check(path, is_fit, f'{found}; it must be {wanted}')
        _check(path, min(member.shape) > 0, f'{found}: empty')
    lengths = {name: member.shape[0] for name, member in members.items()}
    _check(path, len(set(lengths.values())) == 1, f'arrays differ in length: {lengths}')


def _fitness(member: NpzMember) -> tuple[bool, str]:
    """(whether type and rank are fit for the array of this name, what they have to be)."""
    rank, dtype = len(member.shape), member.dtype
    is_float = dtype in (np.float32, np.float64)
    match member.name:
        case 'observations':
            is_fit = (rank == 4 and dtype == np.uint8) or (rank == 2 and is_float)
            return is_fit, 'uint8 (n, h, w, c) or float32 or float64 (n, d)'
        case 'actions':
            return rank == 2 and is_float, 'float32 or float64 (n, a)'
        case 'terminals':
            return rank == 1 and dtype.kind in 'biuf', 'bool or numbers 0 and 1 (n,)'
        case 'rewards' | 'masks':
            return rank == 1 and dtype.kind in 'biuf', 'numbers (n,)'
        case 'button_states':
            return rank == 2 and dtype.kind in 'biuf', 'bool or numbers (n, d)'
        case _:
            return rank == 2 and is_float, 'float32 or float64 (n, d)'


def _check(path: Path, is_sound: bool | np.bool_, fault: str) -> None:
    if not is_sound:
        raise DataError(f'{path}: {fault}')
