"""The store on disk that every loader reads: memory-mapped `.npy` files, one copy of each frame.

    <store>/manifest.json           what the store was made of, and what it must hold
    <store>/<split>/<array>.npy     split: train, val; array: observations, actions, terminals, ...

A store stands whole or not at all: it is written in a folder beside its place and renamed into it.
"""

import errno
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy_format

from data_pipeline.errors import DataError
from data_pipeline.sources import ogbench
from data_pipeline.sources.base import INFO_ARRAYS, LABEL_ARRAYS, SourceSplit, checked_blocks

FORMAT_VERSION = 1
ALIGNMENT = 64  # bytes; TensorFlow aborts the process on a tensor that starts anywhere else
_VERIFY_BYTES = 4 << 20
_WEEK = 7 * 24 * 3600  # seconds; no folder takes as long to write

# Tells this process from earlier ones of its number, which are dead.
_TOKEN = secrets.token_hex(4)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a store. Rows are those of the source file; all arrays are read-only memmaps.

    observations: (n, h, w, c) uint8 or (n, d) float32
    actions: (n, a) float32 in [-1, 1]
    terminals: (n,) bool, set on the last row of each trajectory
    info: qpos, qvel, button_states, each (n, d), where the source has them
    labels: rewards and masks, each (n,) float32, of a task of the data's own; else empty
    """

    name: str
    path: Path
    observations: np.ndarray
    actions: np.ndarray
    terminals: np.ndarray
    info: dict[str, np.ndarray]
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {
            'observations': self.observations,
            'actions': self.actions,
            'terminals': self.terminals,
            **self.info,
            **self.labels,
        }

    @property
    def num_transitions(self) -> int:
        """One for each row that is not the last of its trajectory."""
        return len(self.terminals) - int(np.count_nonzero(self.terminals))

    @property
    def valid_rows(self) -> np.ndarray:
        """(m,) int64: the rows where a transition starts, which are all but the ends."""
        return np.flatnonzero(~self.terminals)

    @property
    def first_rows(self) -> np.ndarray:
        """(n,) int64: the first row of each row's trajectory."""
        lengths = self.lengths
        return np.repeat(np.cumsum(lengths) - lengths, lengths)

    @property
    def lengths(self) -> np.ndarray:
        """(trajectories,) int64: the number of rows of each."""
        return np.diff(np.flatnonzero(self.terminals), prepend=-1)


@dataclass(frozen=True, eq=False)
class FrameStore:
    """An open store: its folder, its manifest as read from JSON, and its splits by name."""

    path: Path
    manifest: dict[str, Any]
    splits: dict[str, Split]

    @property
    def checksums(self) -> dict[str, dict[str, str | None]]:
        """SHA-256 of every array's bytes, by split and name; None where the manifest has none."""
        return {
            split: {name: array.get('sha256') for name, array in entry['arrays'].items()}
            for split, entry in self.manifest['splits'].items()
        }


def open_store(path: Path) -> FrameStore:
    """Opens a finished store; nothing is read but headers.

    Raises:
        DataError: no store there, one of a newer format, or files not as the manifest says.
    """
    path = Path(path)
    manifest_path = path / 'manifest.json'
    try:
        manifest = json.loads(manifest_path.read_text(encoding='utf-8'))
        version = manifest['format_version']
        if version > FORMAT_VERSION:
            raise DataError(f'{path}: store format {version} is newer than this code; update it')
        splits = {name: _open_split(path, name, manifest) for name in manifest['splits']}
    except FileNotFoundError as error:
        if error.filename == str(manifest_path):
            raise DataError(f'{path}: no frame store here; prepare the dataset first') from error
        raise _damaged(path, f'{error.filename} is missing') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    return FrameStore(path, manifest, splits)


def prepare_store(
    path: Path,
    dataset: str,
    source: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FrameStore:
    """`write_store` of an OGBench file, and of the `-val.npz` beside it if there is one."""
    splits = ogbench.npz_splits(Path(source))
    return write_store(path, dataset, splits, overwrite=overwrite, progress=progress)


def write_store(
    path: Path,
    dataset: str,
    splits: Mapping[str, SourceSplit],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FrameStore:
    """Makes the store `path` of the splits of a source.

    A store already made of the same source is returned as it is. With `overwrite` it is made anew,
    and the old one is kept until the new one stands.

    Args:
        path: folder of the store.
        dataset: name of the dataset, written in the manifest.
        splits: where the arrays come from, by split name.
        progress: called as `progress(done_bytes, total_bytes)`, in bytes of the stored arrays; the
            total is a guess where a source does not know its number of rows.

    Raises:
        DataError: an unsound source, splits that do not fit together, too little disk space, or
            something else in the store's place.
    """
    path = Path(path)
    _check_splits(splits)
    remove_leftovers(path)
    sources = {name: split.description for name, split in splits.items()}
    if path.exists() and not (path / 'manifest.json').exists():
        raise DataError(f'{path}: something other than a frame store stands here; move it away')
    if path.exists() and not overwrite:
        return _reuse(path, dataset, sources)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path, splits.values())
        advance = _counter(progress, sum(split.nbytes for split in splits.values()))
        with atomic_folder(path, replace=overwrite) as folder:
            manifest = {
                'format_version': FORMAT_VERSION,
                'dataset': dataset,
                'sources': sources,
                'splits': {
                    name: _write_split(folder / name, split, advance)
                    for name, split in splits.items()
                },
                'versions': {'python': platform.python_version(), 'numpy': np.__version__},
                'created': datetime.now(UTC).isoformat(timespec='seconds'),
            }
            write_text(folder / 'manifest.json', json.dumps(manifest, indent=2))
    except FileExistsError:  # Another process has finished the store meanwhile.
        return _reuse(path, dataset, sources)
    except OSError as error:  # Sources raise DataError; this is the store's side.
        raise DataError(
            f'{path}: cannot be written: {error.strerror or error}; nothing was changed'
        ) from error
    return open_store(path)


def verify_store(store: FrameStore, progress: Progress | None = None) -> None:
    """Reads every array and compares it with the checksum taken when the store was made.

    Raises:
        DataError: an array that is not what was written, or no checksum in the manifest.
    """
    entries = [
        (store.path / split / f'{name}.npy', store.splits[split].arrays[name], entry)
        for split in store.splits
        for name, entry in store.manifest['splits'][split]['arrays'].items()
    ]
    advance = _counter(progress, sum(array.nbytes for _, array, _ in entries))
    for path, array, entry in entries:
        if 'sha256' not in entry:
            raise _damaged(store.path, 'the manifest has no checksums')
        digest = hashlib.sha256()
        try:
            with open(path, 'rb') as file:
                file.seek(entry['file_bytes'] - array.nbytes)
                while block := file.read(_VERIFY_BYTES):
                    digest.update(block)
                    advance(len(block))
        except OSError as error:
            raise _damaged(store.path, f'{path} cannot be read: {error.strerror}') from error
        if digest.hexdigest() != entry['sha256']:
            raise _damaged(store.path, f'{path} is not what was written (checksum differs)')


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder that becomes `target` when the block ends, and vanishes when the block raises.

    Until then it lies beside it, by a name that no other writer gives and that tells
    `remove_leftovers` which process this is, and where it runs.

    Raises:
        FileExistsError: `target` exists already (and is not empty), and `replace` is not set.
    """
    writer = f'{_host()}-{os.getpid()}-{_TOKEN}{secrets.token_hex(4)}'
    folder = target.with_name(f'.{target.name}.incomplete-{writer}')
    folder.mkdir(parents=True)
    try:
        yield folder
        for made in [folder, *(child for child in folder.rglob('*') if child.is_dir())]:
            sync_path(made)
        if replace and target.exists():
            _exchange(folder, target, target.with_name(f'.{target.name}.replaced-{writer}'))
        else:
            _rename_folder(folder, target)
        sync_path(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_leftovers(target: Path) -> None:
    """Removes what killed processes left beside `target`; puts an old one back that has no heir.

    Whether a writer is alive can be told on its own host only. Disks are shared, so what others
    write is left alone for a week.
    """
    pattern = rf'\.{re.escape(target.name)}\.(incomplete|replaced)-(.*)-(\d+)-([0-9a-f]+)'
    for leftover in target.parent.glob(f'.{glob.escape(target.name)}.*'):
        match = re.fullmatch(pattern, leftover.name)
        # Gone meanwhile, or there meanwhile: another process does the same.
        with suppress(FileNotFoundError, FileExistsError):
            if match is None or _may_live(leftover, match[2], int(match[3]), match[4]):
                continue
            if match[1] == 'replaced' and not target.exists():
                _rename_folder(leftover, target)
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a `.npy` file, synced; returns its entry for the manifest."""
    with ArrayWriter(path, array.shape[1:], array.dtype) as writer:
        writer.append(array)
        return writer.finish()


class ArrayWriter:
    """A `.npy` file that grows by blocks of rows, however many there will be.

    Blocks are written, and their checksum taken, in a thread while the next is decompressed; what
    goes wrong there is raised by the next call.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._row_shape = row_shape
        self._dtype = np.dtype(dtype)
        self._rows = 0
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._file = open(path, 'xb')  # noqa: SIM115  (closed by __exit__)
        self._write_header()
        self._data_start = self._file.tell()
        assert self._data_start % ALIGNMENT == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def append(self, block: np.ndarray) -> None:
        """Writes rows, which must have the file's type and row shape."""
        assert block.dtype == self._dtype
        assert block.shape[1:] == self._row_shape
        self._wait()  # No more than one block is in memory besides the new one.
        self._writing = self._thread.submit(self._write, np.ascontiguousarray(block).data)
        self._rows += len(block)

    def finish(self) -> dict[str, Any]:
        """Writes the number of rows into the header and syncs; the array's manifest entry."""
        self._wait()
        nbytes = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._data_start  # NumPy leaves room for the number to grow.
        _sync_file(self._file)
        return {
            'shape': [self._rows, *self._row_shape],
            'dtype': npy_format.dtype_to_descr(self._dtype),
            'file_bytes': nbytes,
            'sha256': self._digest.hexdigest(),
        }

    def _write(self, data: memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write_header(self) -> None:
        header = {
            'descr': npy_format.dtype_to_descr(self._dtype),
            'fortran_order': False,
            'shape': (self._rows, *self._row_shape),
        }
        npy_format.write_array_header_1_0(self._file, header)


def write_text(path: Path, text: str) -> None:
    """Writes a new text file, synced."""
    with open(path, 'x', encoding='utf-8') as file:
        file.write(text)
        _sync_file(file)


def sync_path(path: Path) -> None:
    """Has the system write a file, or what a folder's names mean, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_split(
    folder: Path, split: SourceSplit, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Checks and writes one split; returns its entry for the manifest."""
    folder.mkdir()
    trajectories = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                ArrayWriter(folder / f'{name}.npy', spec.row_shape, spec.dtype)
            )
            for name, spec in split.arrays.items()
        }
        for name, block in checked_blocks(split):
            writers[name].append(block)
            advance(block.nbytes)
            if name == 'terminals':
                trajectories += int(block.sum())
        entries = {name: writer.finish() for name, writer in writers.items()}
    rows = entries['terminals']['shape'][0]
    return {'rows': rows, 'trajectories': trajectories, 'arrays': entries}


def _check_splits(splits: Mapping[str, SourceSplit]) -> None:
    """Compares the arrays that splits share with those of the first."""
    first, *others = splits.values()
    for split in others:
        for name, wanted in first.arrays.items():
            found = split.arrays.get(name, wanted)
            if found != wanted:
                raise DataError(
                    f'{split.origin}: {name} has rows of {found.dtype} {found.row_shape}, '
                    f'those of {first.origin} are {wanted.dtype} {wanted.row_shape}'
                )


def _check_space(path: Path, splits: Iterable[SourceSplit]) -> None:
    needed = sum(split.nbytes for split in splits if split.rows_are_known)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f'{path}: needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free'
        )


def _open_split(store: Path, name: str, manifest: dict[str, Any]) -> Split:
    folder = store / name
    entries = manifest['splits'][name]['arrays']
    arrays: dict[str, np.ndarray] = {
        key: _open_array(folder / f'{key}.npy', entry) for key, entry in entries.items()
    }
    info = {key: arrays[key] for key in INFO_ARRAYS if key in arrays}
    labels = {key: arrays[key] for key in LABEL_ARRAYS if key in arrays}
    required = (arrays['observations'], arrays['actions'], arrays['terminals'])
    return Split(name, folder, *required, info, labels)


def _open_array(path: Path, entry: Mapping[str, Any]) -> np.ndarray:
    if (size := path.stat().st_size) != entry['file_bytes']:
        raise ValueError(f'{path.name} has {size} bytes in place of {entry["file_bytes"]}')
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    if array.shape != tuple(entry['shape']) or array.dtype.str != entry['dtype']:
        raise ValueError(f'{path.name} is {array.dtype} {array.shape}')
    return array


def _reuse(path: Path, dataset: str, sources: Mapping[str, Any]) -> FrameStore:
    """The store at `path` if it was made of these sources."""
    store = open_store(path)
    wanted = {split: file['sha256'] for split, file in sources.items()}
    found = {split: file['sha256'] for split, file in store.manifest['sources'].items()}
    if wanted != found or dataset != store.manifest['dataset']:
        raise DataError(f'{path}: a store of other source files stands here; pass --overwrite')
    return store


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that adds bytes to a running sum and reports it."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return advance


def _exchange(folder: Path, target: Path, old: Path) -> None:
    """Puts `folder` in the place of `target`, which is `old` in between and then removed."""
    with suppress(FileNotFoundError):  # Another process is replacing it, too.
        os.rename(target, old)
    try:
        _rename_folder(folder, target)
    except FileExistsError:  # That one was first, and what stands there is as new.
        shutil.rmtree(old, ignore_errors=True)
        raise
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _rename_folder(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f'{target} exists') from error
        raise


def _host() -> str:
    """Names where this process runs, and its number means a process: a host, or a container there.

    A container has its own numbers, but may have the name of its host.
    """
    with suppress(OSError):  # Other systems than Linux have no such file.
        return f'{socket.gethostname()}-{os.stat("/proc/self/ns/pid").st_ino}'
    return socket.gethostname()


def _may_live(folder: Path, host: str, pid: int, token: str) -> bool:
    """Whether the writer of a folder may be alive."""
    # Of the times that a folder has, renaming it changes only this one.
    if time.time() - folder.stat().st_ctime > _WEEK:
        return False
    if host != _host():
        return True
    return token.startswith(_TOKEN) if pid == os.getpid() else _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(f'{path}: damaged frame store: {fault}; make it again with --overwrite')
