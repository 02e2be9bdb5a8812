"""Verification of stored arrays by their checksums: once, and again after a file changes.

    <data folder>/.<store>.verified.json    size, modification time and inode of verified files
    <data folder>/.<store>.verified.lock    held by the process that verifies

If that folder is read-only, nothing is recorded, and every process verifies the arrays again.
"""

import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal, Self

from data_pipeline.errors import DamagedError
from data_pipeline.files import LockedError, locked, write_json
from data_pipeline.progress import Progress
from data_pipeline.schema import read_json
from data_pipeline.store.manifest import ArrayEntry

VerifyMode = Literal['never', 'once', 'always']

_BLOCK_BYTES = 1 << 20
_BACKGROUND_SHARE = 0.25  # of one processor and of the disk, while the run continues
_LOCK_SECONDS = 0.5  # between two checks whether another process has finished
_WAIT_SECONDS = 0.1


@dataclass(frozen=True)
class StoredArray:
    """The bytes of a file that have a checksum.

    Attributes:
        path: the file.
        start, nbytes: their position and number.
        sha256: their checksum when they were written.
        remedy: what the user can do if they differ, for messages.
    """

    path: Path
    start: int
    nbytes: int
    sha256: str
    remedy: str

    @classmethod
    def of(cls, path: Path, entry: ArrayEntry, remedy: str) -> 'StoredArray':
        """The array of a `.npy` file."""
        return cls(path, entry.file_bytes - entry.nbytes, entry.nbytes, entry.sha256, remedy)


class Verification:
    """Compares a store's arrays with their checksums in a thread; a context manager.

    The thread uses a part of one processor until `wait` is called. On exit it stops, finished or
    not. Until then the files are open, and those that change are verified again.
    """

    def __init__(self, store: Path, mode: VerifyMode) -> None:
        """Start with nothing to verify.

        Args:
            store: the store's folder.
            mode: whether arrays are verified: never, once until a file changes, or always.
        """
        self._store, self._mode = store, mode
        self._record = _Record(store, since=time.time_ns() if mode == 'always' else 0)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._parts: list[Future[None]] = []
        self._files = ExitStack()
        self._sound: dict[Path, tuple[StoredArray, FileIO, _Seen]] = {}
        self._hurry, self._stop = threading.Event(), threading.Event()
        self._total = self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._hurry.set()
        self._thread.shutdown(cancel_futures=True)
        self._files.close()

    def add(self, arrays: Sequence[StoredArray]) -> None:
        """Add arrays to verify, the small ones first.

        Files are opened here, so that a later replacement of the store by another process has no
        effect.

        Raises:
            DamagedError: a file cannot be opened.
        """
        if self._mode == 'never':
            return
        opened = open_files(sorted(arrays, key=lambda array: array.nbytes))
        for _, file in opened:
            self._files.enter_context(file)
        self._total += sum(array.nbytes for array, _ in opened)
        self._parts.append(self._thread.submit(self._verify, opened))

    def check(self) -> None:
        """Raise DamagedError if a damaged array has been found so far."""
        for part in self._parts:
            if part.done():
                part.result()

    def is_done(self) -> bool:
        """Whether all arrays are verified, and no file has changed since, in place.

        Those that have changed, as by a copy over a store that is in use, are verified again.
        """
        changed = [
            (array, file)
            for array, file, seen in list(self._sound.values())
            if _Seen.of(array, file) != seen
        ]
        for array, _ in changed:
            del self._sound[array.path]
        if changed:
            self._done -= sum(array.nbytes for array, _ in changed)
            self._parts.append(self._thread.submit(self._verify, changed))
        return all(part.done() and part.exception() is None for part in self._parts)

    def wait(self, progress: Progress, between: Callable[[], None]) -> None:
        """Wait, at full speed from now on, until all are verified.

        Args:
            progress: called as `progress(done_bytes, total_bytes)`, and
            between: called too, both several times a second.

        Raises:
            DamagedError: an array is damaged.
        """
        self._hurry.set()
        while wait(self._parts, _WAIT_SECONDS).not_done:
            self.check()
            progress(self._done, self._total)
            between()
        self.check()
        progress(self._done, self._total)

    def _verify(self, opened: list[tuple[StoredArray, FileIO]]) -> None:
        with ExitStack() as stack:
            if not all(self._record.knows(*pair) for pair in opened):
                self._lock(stack)
            for array, file in opened:
                seen = _Seen.of(array, file)
                if self._record.knows(array, file):
                    self._done += array.nbytes
                elif not self._read(array, file, seen):
                    return
                self._sound[array.path] = array, file, seen

    def _lock(self, stack: ExitStack) -> None:
        """Wait until no other process verifies the store, unless a run calls `wait`."""
        while not self._hurry.is_set():
            try:
                stack.enter_context(locked(_beside(self._store, 'lock'), 'verifies the store'))
            except LockedError:
                self._hurry.wait(_LOCK_SECONDS)
            except OSError:  # A read-only folder.
                return
            else:
                return

    def _read(self, array: StoredArray, file: FileIO, before: '_Seen') -> bool:
        """Verify and record one array; return whether it was read to the end."""

        def advance(nbytes: int, seconds: float) -> bool:
            self._done += nbytes
            self._hurry.wait(seconds * (1 / _BACKGROUND_SHARE - 1))
            return not self._stop.is_set()

        if not compare_checksum(array, file, advance):
            return False
        if _Seen.of(array, file) == before:
            self._record.add(array, before)
        return True


def verify(store: Path, arrays: Sequence[StoredArray], progress: Progress) -> None:
    """Verify all these arrays of a store now, and record the sound ones.

    Raises:
        DamagedError: an array differs from what was written; names the first one.
    """
    with Verification(store, 'always') as verification:
        verification.add(arrays)
        verification.wait(progress, lambda: None)


def open_files(arrays: Iterable[StoredArray]) -> list[tuple[StoredArray, FileIO]]:
    """The arrays with their opened files.

    Raises:
        DamagedError: one cannot be opened.
    """
    with ExitStack() as stack:
        opened: list[tuple[StoredArray, FileIO]] = []
        for array in arrays:
            try:
                opened.append((array, stack.enter_context(open(array.path, 'rb', buffering=0))))
            except OSError as error:
                raise _unreadable(array, error) from error
        stack.pop_all()
        return opened


def compare_checksum(
    array: StoredArray, file: FileIO, advance: Callable[[int, float], bool] = lambda *_: True
) -> bool:
    """Compare an array in an open file with its checksum.

    Args:
        advance: called after each block with its bytes and the seconds that reading took; returns
            whether to continue.

    Returns:
        Whether the array was read to the end.

    Raises:
        DamagedError: the array differs from what was written.
    """
    digest, left = hashlib.sha256(), array.nbytes
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    try:
        file.seek(array.start)
        while left:
            began = time.monotonic()
            count = file.readinto(buffer[: min(left, _BLOCK_BYTES)])
            if not count:
                break
            digest.update(buffer[:count])
            left -= count
            if not advance(count, time.monotonic() - began):
                return False
    except OSError as error:
        raise _unreadable(array, error) from error
    if digest.hexdigest() != array.sha256:
        raise DamagedError(
            f'{array.path} is not what was written (checksum differs); {array.remedy}'
        )
    return True


def check_array(array: StoredArray) -> None:
    """Raise DamagedError if an array differs from what was written; read it now."""
    [(_, file)] = open_files([array])
    with file:
        compare_checksum(array, file)


@dataclass(frozen=True)
class _Seen:
    """A file whose array had this checksum, and the time when it was read."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str
    when_ns: int = field(compare=False)

    @classmethod
    def of(cls, array: StoredArray, file: FileIO) -> '_Seen':
        """The current state of an open file, which is assumed to be sound."""
        status = os.fstat(file.fileno())
        now = time.time_ns()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, array.sha256, now)


@dataclass(frozen=True)
class _Remembered:
    """The arrays verified as sound, by their paths within the store."""

    arrays: Mapping[str, _Seen]


class _Record:
    """The record of a store's verified arrays; all processes read and write it."""

    def __init__(self, store: Path, since: int) -> None:
        """Ignore verifications before `since`, in nanoseconds of the clock."""
        self._store, self._since = store, since
        self._path = _beside(store, 'json')

    def knows(self, array: StoredArray, file: FileIO) -> bool:
        """Whether the array in an open file was sound, and the file has not changed since."""
        seen = self._read().get(self._name(array))
        return seen is not None and seen == _Seen.of(array, file) and seen.when_ns >= self._since

    def add(self, array: StoredArray, seen: _Seen) -> None:
        """Record an array, if the folder is writable."""
        remembered = _Remembered({**self._read(), self._name(array): seen})
        with suppress(OSError):
            write_json(self._path, dataclasses.asdict(remembered))

    def _read(self) -> Mapping[str, _Seen]:
        try:
            return read_json(self._path, _Remembered).arrays
        except (OSError, ValueError):  # No record yet, or a damaged one: arrays are read again.
            return {}

    def _name(self, array: StoredArray) -> str:
        return array.path.relative_to(self._store).as_posix()


def _beside(store: Path, ending: str) -> Path:
    return store.with_name(f'.{store.name}.verified.{ending}')


def _unreadable(array: StoredArray, error: OSError) -> DamagedError:
    return DamagedError(f'{array.path} cannot be read: {error.strerror or error}; {array.remedy}')
