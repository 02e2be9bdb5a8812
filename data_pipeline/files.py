"""Files and folders that stand whole or not at all, on the disk; and locks.

What is written lies beside its place under another name until it is on the disk, and is then
renamed into it. Imports nothing that is slow or that may not be where environments are rendered.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
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
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """A path to write to, which becomes `path` when that succeeds and vanishes when it fails.

    What it becomes is on the disk when this ends. Any number of processes may do the same.

    Args:
        folder: where it lies until then, of the same file system; default beside `path`.
    """
    name = f'.{path.name}.{secrets.token_hex(4)}{_TEMPORARY}'
    temporary = (folder or path.parent) / name
    try:
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

    One process at a time writes a target: others wait. What killed ones have left beside it is
    removed, and an old target that was on its way out is put back.

    Raises:
        FileExistsError: `target` exists already, and `replace` is not set.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
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
            for made in [folder, *(child for child in folder.rglob('*') if child.is_dir())]:
                sync_path(made)
            _exchange(folder, target, old)
            sync_path(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


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
