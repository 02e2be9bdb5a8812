"""Files and folders that stand whole or not at all, on the disk; and locks.

What is written lies beside its place under another name until it is on the disk, and is then
renamed into it. Imports nothing that is slow or that may not be where environments are rendered.
"""

import errno
import fcntl
import json
import math
import os
import secrets
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from data_pipeline.errors import DataError

_TEMPORARY = '.tmp'


class LockedError(DataError):
    """Another process does what one alone may do.

    Attributes:
        holder: which process that is, as it says itself.
    """

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


@contextmanager
def locked(path: Path, work: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock file `path` while active; the system frees it when the process dies.

    The file stays: were it removed, two processes could hold locks on two files of its name.

    Args:
        work: what the process that holds it does, for messages to others.
        wait: whether to wait for another process that holds it, saying so.

    Raises:
        LockedError: another process holds it, and `wait` is not set.
    """
    with path.open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                file.seek(0)
                holder = file.read().strip()
                message = f'{path}: another process {work}; wait for it'
                raise LockedError(message, holder) from None
            from tqdm import tqdm  # Here, so that benchmarks run where it is not installed.

            tqdm.write(f'another process {work}; waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Faults of the system inside name the file `path`, as those of a write by themselves do not.

    Raises:
        OSError: as it was raised inside, with a file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A path to write to, which becomes `path` when that succeeds and vanishes when it fails.

    What it becomes is on the disk when this ends. Any number of processes may do the same.

    Args:
        folder: where it lies until then, of the same file system; default beside `path`.
    """
    name = f'.{path.name}.{secrets.token_hex(4)}{_TEMPORARY}'
    temporary = (folder or path.parent) / name
    try:
        with naming(path):
            yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
        sync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file, synced, whole or not at all, in place of what is there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """`write_text` of JSON, a value a line."""
    write_text(path, json.dumps(values, indent=indent) + '\n')


def is_temporary(path: Path) -> bool:
    """Whether a file is what a killed process has left of one that it was writing."""
    return path.name.startswith('.') and path.name.endswith(_TEMPORARY)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends, and vanishes when the block raises.

    All that is in it is on the disk before it has its name.

    One process at a time writes a target: others wait. What killed ones have left beside it is
    removed, and an old target that was on its way out is put back.

    Raises:
        FileExistsError: `target` exists already, and `replace` is not set.
        FileNotFoundError: it is a link that leads nowhere, as to a disk that is not mounted.
    """
    if target.is_symlink():
        target = target.resolve(strict=True)
    make_folder(target.parent)
    folder, old = (target.with_name(f'.{target.name}.{x}') for x in ('incomplete', 'replaced'))
    with locked(target.with_name(f'.{target.name}.lock'), f'writes {target}', wait=True):
        if old.exists() and not target.exists():
            os.rename(old, target)
        for leftover in (folder, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        if target.exists() and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        folder.mkdir()
        try:
            yield folder
            for made in [folder, *folder.rglob('*')]:
                sync_path(made)
            _exchange(folder, target, old)
            sync_path(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, as far as they are missing, and syncs their names.

    Raises:
        NotADirectoryError: something else, or a link to nothing, is in the place of one.
        OSError: one cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # Which would say that there is a folder.
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename
        ) from error
    for folder in missing:
        sync_path(folder.parent)


def sync_file(file: IO[Any]) -> None:
    """Has the system write an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Has the system write a file, or what a folder's names mean, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_npy_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Writes the header of a `.npy` file, whose length does not depend on the number of rows."""
    header = {
        'descr': npy_format.dtype_to_descr(dtype),
        'fortran_order': False,
        'shape': shape,
    }
    npy_format.write_array_header_1_0(file, header)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of an open `.npy` file, leaving it at the first data byte.

    Raises:
        ValueError: it has no such header.
    """
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    try:
        # NumPy warns of headers that it has to guess at, and Python of odd escapes in them.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            shape, is_fortran, dtype = readers[npy_format.read_magic(file)](file)
    except OSError:
        raise
    except Exception as error:  # NumPy lets pass whatever the damage leads to.
        raise ValueError(f'the .npy header is damaged: {_first_line(error)}') from error
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f'the .npy header is damaged: shape {shape}')
    return shape, is_fortran, dtype


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, read into memory or as a read-only map of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something other than numbers in C order, or more or fewer of them than
            its header says.
    """
    with open(path, 'rb') as file:
        shape, is_fortran, dtype = read_npy_header(file)
        if is_fortran or dtype.kind not in 'biuf':
            raise ValueError(
                f'{path.name} holds {dtype} in {"Fortran" if is_fortran else "C"} order'
            )
        start, size = file.tell(), file.seek(0, os.SEEK_END)
        count = math.prod(shape)
        if size != start + count * dtype.itemsize:
            raise ValueError(f'{path.name} has {size} bytes, not those of {dtype} {shape}')
        if mapped:
            return np.memmap(path, dtype, 'r', start, shape)
        file.seek(start)
        return np.fromfile(file, dtype, count).reshape(shape)


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name; all of them, unless some are named.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or lacks one of these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays}
    except OSError:
        raise
    except Exception as error:  # NumPy and zipfile let pass whatever the damage leads to.
        raise ValueError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _exchange(folder: Path, target: Path, old: Path) -> None:
    """Puts `folder` in the place of `target`; what stands there is `old` in between."""
    with suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
