"""Writes a frame store: checked blocks of a source, as `.npy` files with checksums.

A store is written atomically: in a temporary folder beside its place, which is then renamed.
"""

import dataclasses
import hashlib
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_pipeline.array_names import INFO_ARRAYS, LABEL_ARRAYS, REQUIRED_ARRAYS
from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError
from data_pipeline.files import (
    atomic_folder,
    is_temporary,
    make_folder,
    naming,
    sync_file,
    write_json,
    write_npy_header,
)
from data_pipeline.observations import is_observation
from data_pipeline.progress import Progress, running_sum
from data_pipeline.source_split import Note, SourceSplit, checked_blocks
from data_pipeline.store.frame_store import (
    ALIGNMENT,
    FrameStore,
    open_store,
)
from data_pipeline.store.manifest import FORMAT_VERSION, ArrayEntry, Manifest, SplitEntry

_OTHER_PARTS = {'manifest.json', 'labels', 'latents'}
"""What a store's folder may hold besides its splits."""
_ARRAYS = {*REQUIRED_ARRAYS, *INFO_ARRAYS, *LABEL_ARRAYS}


def write_store(
    path: Path,
    dataset: str,
    splits: Mapping[str, SourceSplit],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FrameStore:
    """Make the store `path` from the splits of a source.

    An existing store of the same source is returned as it is, also one that another process is
    writing. With `overwrite` it is made again, and the old one is kept until the new one is
    complete. The manifest records as `notes` what was converted, skipped or ignored.

    Args:
        path: folder of the store.
        dataset: name of the dataset, written in the manifest.
        splits: the sources of the arrays, by split name.
        progress: called as `progress(done_bytes, total_bytes)`, in bytes of the stored arrays; the
            total is an estimate if a source does not know its number of rows.

    Raises:
        DataError: an invalid source, splits that do not fit together or have invalid names, too
            little disk space, or something other than a store in its place, or in the store that is
            to be replaced.
    """
    path = Path(path)
    for name in (dataset, *splits):
        check_name(name)
    _check_splits(splits)
    sources = {name: split.description for name, split in splits.items()}
    if path.exists() and not (path / 'manifest.json').exists():
        raise DataError(f'{path}: exists and is not a frame store; move it away')
    if path.exists() and not overwrite:
        return _reuse(path, dataset, sources)
    if foreign := _foreign_entries(path):
        raise DataError(
            f'{path}: holds {", ".join(foreign)}, which --overwrite would delete; move it away'
        )

    try:
        make_folder(path.parent)
        _check_space(path, splits.values())
        advance = running_sum(progress, sum(split.nbytes for split in splits.values()))
        with atomic_folder(path, replace=overwrite) as folder:
            notes: dict[str, list[str]] = {name: [] for name in splits}

            def write(name: str, split: SourceSplit) -> SplitEntry:
                return _write_split(
                    folder / name, split, advance, lambda line: notes[name].append(_shown(line))
                )

            manifest = Manifest(
                format_version=FORMAT_VERSION,
                dataset=dataset,
                splits={name: write(name, split) for name, split in splits.items()},
                sources={
                    name: {**source, **({'notes': notes[name]} if notes[name] else {})}
                    for name, source in sources.items()
                },
                versions={'python': platform.python_version(), 'numpy': np.__version__},
                created=datetime.now(UTC).isoformat(timespec='seconds'),
            )
            write_json(folder / 'manifest.json', dataclasses.asdict(manifest))
    except FileExistsError:  # Another process has made the store in the meantime.
        return _reuse(path, dataset, sources)
    except OSError as error:  # Sources raise DataError; this is a fault of writing.
        raise DataError(
            f'{path}: cannot be written: {error.strerror or error}; nothing was changed'
        ) from error
    return open_store(path)


def _shown(line: str) -> str:
    """A line as it can be printed: the names in a source may hold anything."""
    return ''.join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _foreign_entries(path: Path) -> list[str]:
    """What is in the folder of a store, if it exists, and in those of its splits, but not ours."""
    if not path.is_dir():
        return []
    foreign: list[str] = []
    for entry in path.iterdir():
        if entry.name in _OTHER_PARTS or is_temporary(entry):
            continue
        within = list(entry.iterdir()) if entry.is_dir() else []
        odd = [f'{entry.name}/{each.name}' for each in within if not _is_array(each)]
        is_split = entry.is_dir() and (not within or len(odd) < len(within))
        foreign += odd if is_split else [entry.name]
    return sorted(foreign)


def _is_array(path: Path) -> bool:
    """Whether a file in the folder of a split is ours."""
    is_known = path.stem in _ARRAYS or is_observation(path.stem)
    return (path.suffix == '.npy' and is_known) or is_temporary(path)


def write_array(path: Path, array: np.ndarray) -> ArrayEntry:
    """Write a `.npy` file, synced."""
    with ArrayWriter(path, array.shape[1:], array.dtype) as writer:
        writer.append(array)
        return writer.finish()


class ArrayWriter:
    """A `.npy` file that grows by blocks of rows; their number need not be known.

    A thread writes blocks and computes their checksum while the next is decompressed. Its
    exceptions are raised by the next call.
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
        """Write rows, which must have the file's type and row shape."""
        assert block.dtype == self._dtype
        assert block.shape[1:] == self._row_shape
        self._wait()  # At most one block is in memory besides the new one.
        self._writing = self._thread.submit(self._write, np.ascontiguousarray(block).data)
        self._rows += len(block)

    def finish(self) -> ArrayEntry:
        """Write the number of rows into the header and sync."""
        self._wait()
        nbytes = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._data_start  # NumPy leaves room for the number to grow.
        sync_file(self._file)
        return ArrayEntry(
            shape=(self._rows, *self._row_shape),
            dtype=self._dtype.str,
            file_bytes=nbytes,
            sha256=self._digest.hexdigest(),
        )

    def _write(self, data: memoryview) -> None:
        with naming(Path(self._file.name)):
            self._file.write(data)
        self._digest.update(data)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write_header(self) -> None:
        write_npy_header(self._file, (self._rows, *self._row_shape), self._dtype)


def _write_split(
    folder: Path, split: SourceSplit, advance: Callable[[int], None], note: Note
) -> SplitEntry:
    """Check and write one split."""
    folder.mkdir()
    trajectories = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                ArrayWriter(folder / f'{name}.npy', spec.row_shape, spec.dtype)
            )
            for name, spec in split.arrays.items()
        }
        for name, block in checked_blocks(split, note):
            writers[name].append(block)
            advance(block.nbytes)
            if name == 'terminals':
                trajectories += int(block.sum())
        entries = {name: writer.finish() for name, writer in writers.items()}
    return SplitEntry(entries['terminals'].shape[0], trajectories, entries)


def _check_splits(splits: Mapping[str, SourceSplit]) -> None:
    """Check that arrays of the same name agree between splits."""
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
        raise DataError(f'{path}: needs {needed:,} bytes of disk, {free:,} are free')


def _reuse(path: Path, dataset: str, sources: Mapping[str, Any]) -> FrameStore:
    """The store at `path` if it was made from these sources."""
    store = open_store(path)
    wanted = {split: file['sha256'] for split, file in sources.items()}
    found = {split: file['sha256'] for split, file in store.manifest.sources.items()}
    if wanted != found or dataset != store.manifest.dataset:
        raise DataError(
            f'{path}: this store was made from other source files; replace it with --overwrite'
        )
    return store
