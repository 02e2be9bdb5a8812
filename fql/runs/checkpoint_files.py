"""The files of a written checkpoint: their checksums, what damage did to them, and their lock."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.files import file_sha256, lock_file, write_json
from data_pipeline.schema import read_json
from fql.errors import FQLError

CHECKSUMS = 'checksums.json'
_FILE_MANAGERS = {'Thumbs.db', 'desktop.ini'}
"""What looking at a folder leaves there, besides hidden files. Orbax has no such files."""


@dataclass(frozen=True)
class _Checksums:
    """SHA-256 of every file of a checkpoint, by its path."""

    sha256: Mapping[str, str]


def write_checksums(step_folder: Path) -> None:
    """Write the checksum of every file of a checkpoint beside them."""
    write_json(step_folder / CHECKSUMS, vars(_Checksums(file_checksums(step_folder))), indent=1)


def file_checksums(root: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path.

    CHECKSUMS itself, and what file managers leave, are not among them.

    Raises:
        OSError: a file or a folder cannot be read.
    """
    digests = {}
    for folder, _, names in os.walk(root, onerror=_raise):
        for path in (Path(folder, name) for name in names):
            is_ours = not path.name.startswith('.') and path.name not in _FILE_MANAGERS
            if is_ours and path.is_file() and path != root / CHECKSUMS:
                digests[path.relative_to(root).as_posix()] = file_sha256(path)
    return digests


def _raise(error: OSError) -> None:
    """Raise what `os.walk` would pass over, as if what it could not read were missing."""
    raise error


def find_damage(step_folder: Path) -> str | None:
    """What is wrong with a checkpoint according to its checksums; None if nothing.

    Raises:
        FQLError: its files cannot be read, so that their content is unknown.
    """
    path = step_folder / CHECKSUMS
    try:
        expected = read_json(path, _Checksums).sha256
        found = file_checksums(step_folder)
    except FileNotFoundError as error:
        return f'{os.path.relpath(error.filename, step_folder)} is missing'
    except OSError as error:
        raise FQLError(f'{step_folder} cannot be read: {error}') from error
    except ValueError as error:
        return f'{path.name}: {error}'
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f'{name} is missing'
        if name not in expected:
            return f'{name} does not belong there'
        if expected[name] != found[name]:
            return f'{name} was altered'
    return None


@contextmanager
def locked_checkpoint(step_folder: Path, *, shared: bool) -> Iterator[bool]:
    """Inside, a checkpoint is locked; yields False if another lock is in the way.

    A shared lock is waited for. Without its checksums a checkpoint is damaged, and needs none.
    """
    try:
        file = (step_folder / CHECKSUMS).open('rb' if shared else 'r+b')
    except OSError:
        yield True
        return
    with file:
        is_locked = True
        with suppress(OSError):  # Some file systems have no locks.
            is_locked = lock_file(file, shared=shared, wait=shared)
        yield is_locked
