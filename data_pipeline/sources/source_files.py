"""The files of a source: what they are, whether they change meanwhile, their description."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, first_line
from data_pipeline.files import file_sha256

_PARQUET = 'a Parquet file'
_PICKLE = 'a pickle, which could run any code when it is read; save the arrays by np.savez'
_FORMATS = {
    b'version https://git-lfs': 'a Git LFS pointer; git lfs pull fetches the file',
    b'\x89hdf': 'an HDF5 file',
    b'\x93numpy': 'a single array (.npy)',
    b'par1': _PARQUET,
    b'\x1f\x8b': 'gzip-compressed data',
    b'bzh': 'bzip2-compressed data',
    b'\xfd7zxz': 'xz-compressed data',
    b'\x89png': 'a PNG image',
    b'\x80\x02': _PICKLE,
    b'\x80\x03': _PICKLE,
    b'\x80\x04': _PICKLE,
    b'\x80\x05': _PICKLE,
    b'matlab 5': 'a MATLAB file',
    b'<!doctyp': 'a web page',
    b'<html': 'a web page',
    b'<?xml': 'an XML document',
}
"""What users have in place of a source's file, by its first bytes in lower case."""


def format_of(path: Path) -> str:
    """What a file is in place of a source's, by its first bytes; empty if that is unknown."""
    with open(path, 'rb') as file:
        start = file.read(64)
    if not start:
        return 'an empty file'
    start = start.lstrip().lower()
    return next((name for magic, name in _FORMATS.items() if start.startswith(magic)), '')


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError, ValueError or RuntimeError while a file is read into a DataError."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        reason = error.strerror or _reason(path, error)
        raise DataError(f'{place}: cannot be read: {reason}') from error
    except (ValueError, RuntimeError) as error:
        raise DataError(f'{path}: cannot be read: {_reason(path, error)}') from error


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read: what it is in place of what it should be, or the error."""
    other = format_of(path) if path.is_file() else ''
    return f'it is {other}' if other not in ('', _PARQUET) else first_line(error)


@dataclass(frozen=True)
class FileState:
    """What differs between a file and one that has replaced or changed it."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> 'FileState':
        """That of the file that is there now."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@contextmanager
def unchanged(path: Path, state: FileState) -> Iterator[None]:
    """Raise DataError if a file is in another state before or after the block."""
    _check_state(path, state)
    yield
    _check_state(path, state)


def _check_state(path: Path, state: FileState) -> None:
    if FileState.of(path) != state:
        raise DataError(f'{path}: was changed while it was read; run the command again')


def describe_file(path: Path) -> dict[str, Any]:
    """The description of a file as a source."""
    digest = file_sha256(path)
    return {'path': str(path.resolve()), 'bytes': path.stat().st_size, 'sha256': digest}


def taken_from(description: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The description of a source read with these keys, see `observation_keys`.

    The keys are part of the source's identity.
    """
    if not keys:
        return dict(description)
    is_one = keys.keys() == {''}
    text = keys[''] if is_one else ' '.join(f'{name}={key}' for name, key in sorted(keys.items()))
    return {
        **description,
        'keys': {'observation': keys[''] if is_one else dict(sorted(keys.items()))},
        'sha256': hashlib.sha256(f'{description["sha256"]} {text}'.encode()).hexdigest(),
    }
