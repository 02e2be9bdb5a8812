"""Atomic writes of files and folders, synced to the disk; and locks.

A file or folder is written under a temporary name beside its target, synced, and then renamed.
Imports nothing that is slow or forbidden in processes that render.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
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

from data_pipeline.errors import DataError, first_line

_TEMPORARY = '.tmp'


class LockedError(DataError):
    """Another process holds the lock.

    Attributes:
        holder: the content of the lock file, which names that process.
    """

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


def lock_file(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed; return False if another lock is in the way.

    Args:
        file: open for reading if `shared`, else for writing, as NFS demands.
        wait: whether to wait for the other lock's end.

    Raises:
        OSError: the file system has no locks.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, operation if wait else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # For instance, Lustre without the option `flock`.
        reason = f'its file system has no locks ({error.strerror})'
        raise OSError(error.errno, reason, str(file.name)) from error
    return True


@contextmanager
def locked(path: Path, work: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` while active; the system releases it when the process dies.

    The file is not removed: else two processes could lock two different files of the same name.

    Args:
        work: what the holder of the lock does, for messages of other processes.
        wait: whether to print a message and wait while another process holds the lock.

    Raises:
        LockedError: another process holds it, and `wait` is not set.
    """
    with path.open('a+') as file:
        if not lock_file(file):
            if not wait:
                file.seek(0)
                holder = file.read().strip()
                raise LockedError(f'{path}: another process {work}; wait for it', holder)
            from tqdm import tqdm  # Here, so that benchmarks run without it.

            tqdm.write(f'another process {work}; waiting for it')
            lock_file(file, wait=True)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name `path` to an OSError that has none, such as that of a write.

    Raises:
        OSError: the one raised inside, with a file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` on success and removed on failure.

    The file is synced before the renaming, its folder after it. Several processes may write one
    `path`. What killed ones left is removed.

    Args:
        folder: folder of the temporary file, on the same file system; default that of `path`.
    """
    with naming(path), _temporary_file(folder or path.parent, path.name) as temporary:
        try:
            yield temporary
            sync_path(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_path(path.parent)


@contextmanager
def _temporary_file(folder: Path, name: str) -> Iterator[Path]:
    """A new file to become `name`, locked while active; those of killed processes are removed."""
    ours = re.compile(rf'\.{re.escape(name)}\.[0-9a-f]{{8}}{re.escape(_TEMPORARY)}')
    for leftover in folder.iterdir():
        if ours.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
            with suppress(OSError), leftover.open('r+b') as file:  # It may be in use.
                if lock_file(file):
                    leftover.unlink()
    while True:
        path = folder / f'.{name}.{secrets.token_hex(4)}{_TEMPORARY}'
        with path.open('x+b') as file:  # NFS has shared locks only of files open for reading.
            with suppress(OSError):  # Some file systems have no locks.
                lock_file(file, shared=True, wait=True)
            if path.exists():  # Else another process took it for a leftover before it was locked.
                yield path
                return


def has_text_name(path: Path) -> bool:
    """Whether a path is UTF-8; file systems also take names of other bytes."""
    return str(path).encode(errors='replace').decode() == str(path)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically and synced, replacing an existing one."""
    with replacing(path) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_json(path: Path, values: Any, indent: int = 2) -> None:
    """`write_text` of JSON, one value per line."""
    write_text(path, json.dumps(values, indent=indent) + '\n')


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def is_temporary(path: Path) -> bool:
    """Whether a file is a temporary one, such as a killed process leaves behind."""
    return path.name.startswith('.') and path.name.endswith(_TEMPORARY)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder, renamed to `target` when the block ends and removed when the block raises.

    All its files are synced before the renaming.

    One process at a time writes a target; others wait. Leftovers of killed processes are removed.
    If one was killed between the two renamings of a replacement, the old target is restored.

    Raises:
        FileExistsError: `target` exists already, and `replace` is not set.
        FileNotFoundError: it is a broken link, for example to a disk that is not mounted.
    """
    if target.is_symlink():
        target = target.resolve(strict=True)
    make_folder(target.parent)
    folder, old = (target.with_name(f'.{target.name}.{x}') for x in ('incomplete', 'replaced'))
    with locked(target.with_name(f'.{target.name}.lock'), f'writes {target}', wait=True):
        if old.exists() and not target.exists():
            os.rename(old, target)
        for leftover in (folder, old):
            try:
                _remove(leftover)
            except OSError as error:
                reason = f'{leftover}, left there before, cannot be removed ({error.strerror})'
                raise OSError(error.errno, reason, str(leftover)) from error
        if target.exists() and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        folder.mkdir()
        try:
            with naming(target):
                yield folder
            for made in [folder, *folder.rglob('*')]:
                sync_path(made)
            _exchange(folder, target, old)
            sync_path(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _remove(path: Path) -> None:
    """Remove a folder, or what else has its name, if it exists; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and sync their names.

    Raises:
        NotADirectoryError: in the place of one is something else, or a broken link.
        OSError: one cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # Its message would say that the folder exists.
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename
        ) from error
    for folder in missing:
        sync_path(folder.parent)


def sync_file(file: IO[Any]) -> None:
    """Sync an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_npy_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Write the header of a `.npy` file, whose length does not depend on the number of rows."""
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
        # NumPy warns of ambiguous headers, and Python of odd escapes in them.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            shape, is_fortran, dtype = readers[npy_format.read_magic(file)](file)
    except OSError:
        raise
    except Exception as error:  # NumPy may raise any exception on damaged headers.
        raise ValueError(f'the .npy header is damaged: {first_line(error)}') from error
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f'the .npy header is damaged: shape {shape}')
    return shape, is_fortran, dtype


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, read into memory or as a read-only memory map.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold numbers in C order, or not as many as its header says.
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
            raise ValueError(
                f'{path.name} has {size} bytes, too few or too many for {dtype} {shape}'
            )
        if mapped:
            return np.memmap(path, dtype, 'r', start, shape)
        file.seek(start)
        return np.fromfile(file, dtype, count).reshape(shape)


def load_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file, by name; all of them if no name is given.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or lacks one of these arrays.
    """
    try:
        # NumPy leaves a file open that it has opened and cannot read.
        with open(path, 'rb') as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays}
    except OSError:
        raise
    except Exception as error:  # NumPy and zipfile may raise any exception on damaged files.
        raise ValueError(first_line(error)) from error


def _exchange(folder: Path, target: Path, old: Path) -> None:
    """Rename `folder` to `target`; an existing target is called `old` in between."""
    with suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
