"""The replay of the online phase: growing arrays as of a frame store, one copy of each frame.

    <replay>/replay.json          how many rows there are, and what they are
    <replay>/<split>/<array>.npy  split: `train` of the first environment, `train_1`, ... of others

A split is the stream of one environment, episode after episode. Row t holds an observation, of one
array or several, and the action that was taken there with its mask and the environment's reward.
The last row of an episode has `terminals` set and leads nowhere. The newest row of a stream holds
an observation only, until its action is taken.

Files are longer than their contents, by up to EXTENT rows that take no disk space, so that a loader
can map them before they are filled. A row is written before it is counted, and what lies behind the
number of rows is never read.

This module writes a replay; `data_pipeline.replay_store` opens it as a frame store.
"""

import itertools
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_pipeline.action_range import ActionRange
from data_pipeline.errors import DataError
from data_pipeline.files import read_npy_header, sync_file, write_json, write_npy_header
from data_pipeline.observations import array_name, is_observation, named, unnamed
from data_pipeline.store.manifest import FORMAT_VERSION

RECORD = 'replay.json'

EXTENT = 16_384
"""Number of rows by which the files of a stream grow."""

READ_BYTES = 4 << 20
"""Bytes that are read at once."""


def _is_shown(array: str) -> bool:
    """Whether an array is complete up to the newest row; others have no entry of that row yet."""
    return is_observation(array) or array == 'latents'


@dataclass(frozen=True)
class RowLayout:
    """The contents of a row of a replay.

    Attributes:
        frame_shape, frame_dtype: of a frame, not stacked; of several arrays, by name.
        action_dim: size of an action.
        latents: size and type of the latents of the stack that ends in a row, if they are kept.
    """

    frame_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    frame_dtype: str | Mapping[str, str]
    action_dim: int
    latents: tuple[int, str] | None = None

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The row shape and type of each array, by name."""
        arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            **{
                array_name(name): (shape, np.dtype(named(self.frame_dtype)[name]))
                for name, shape in named(self.frame_shape).items()
            },
            'actions': ((self.action_dim,), np.dtype(np.float32)),
            'rewards': ((), np.dtype(np.float32)),
            'masks': ((), np.dtype(np.float32)),
            'terminals': ((), np.dtype(bool)),
        }
        if self.latents is not None:
            width, dtype = self.latents
            arrays['latents'] = ((width,), np.dtype(dtype))
        return arrays


@dataclass(frozen=True, eq=False)
class Episodes:
    """The positions of the episodes of a stream, or of the trajectories of a split.

    Attributes:
        ends: (m,) int64, the last rows of the finished episodes, ascending.
        rows: number of rows; those behind the last end belong to an unfinished episode.
    """

    ends: np.ndarray
    rows: int

    @property
    def open_first(self) -> int:
        """The first row of the unfinished episode, or of the next one."""
        return int(self.ends[-1]) + 1 if len(self.ends) else 0

    @property
    def is_open(self) -> bool:
        """Whether there is an unfinished episode."""
        return self.rows > self.open_first

    @property
    def transitions(self) -> int:
        """The number of rows whose next row exists and belongs to the same episode."""
        return self.rows - len(self.ends) - self.is_open

    def find(self, transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of transitions (b,) int64, counted over the whole stream.

        Returns:
            Their rows, and the first and last rows of their episodes, (b,) int64 each; the last row
            of an unfinished episode is the newest.
        """
        before = np.searchsorted(self._transitions_before, transitions, side='right')
        return transitions + before, self._bounds[before] + 1, self._bounds[before + 1]

    @cached_property
    def _transitions_before(self) -> np.ndarray:
        """The number of transitions up to the end of each finished episode, (m,) int64.

        Each of its episodes has one last row, where no transition begins.
        """
        return self.ends - np.arange(len(self.ends))

    @cached_property
    def _bounds(self) -> np.ndarray:
        """-1, the finished episodes' last rows, and the newest row, (m + 2,) int64."""
        return np.concatenate([[-1], self.ends, [self.rows - 1]])


Values = list[tuple[str, int, Any]]
"""Values to write: an array's name, a row, a value each."""


class Stream:
    """The rows of one environment, in growing files.

    Attributes:
        path: folder of the arrays.
        layout: the contents of a row.
        rows: number of rows.
        capacity: number of rows that the files have room for.
    """

    def __init__(self, path: Path, layout: RowLayout, rows: int = 0) -> None:
        """Open the files in `path` and cut them to `rows`; make them if `rows` is 0.

        Raises:
            DataError: an array is missing, of another shape, or too short.
        """
        self.path = path
        self.layout = layout
        self.rows = rows
        self.capacity = 0
        self._arrays = layout.arrays
        self._files: dict[str, Any] = {}
        self._starts: dict[str, int] = {}
        # Without the newest row, of which columns have no entry yet and which `cut_off` may remove.
        self._crc = dict.fromkeys(self._arrays, 0)
        self._newest: dict[str, bytes] = {}
        self._ends = np.zeros(0, np.int64)
        self._num_ends = 0
        if rows:
            self._check_files()
        else:
            path.mkdir(parents=True)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def episodes(self) -> Episodes:
        """The positions of the episodes; valid until something is appended."""
        return Episodes(self._ends[: self._num_ends], self.rows)

    def start(self, frame: Any, latents: np.ndarray | None = None) -> None:
        """Append the first row of an episode; the one before it must have ended.

        Args:
            frame: the observation, an array or several by name.
        """
        assert not self.episodes.is_open
        self._append(frame, latents, [])

    def step(
        self,
        action: np.ndarray,
        reward: float,
        mask: float,
        frame: Any,
        ends: bool,
        latents: np.ndarray | None = None,
    ) -> None:
        """Append a step: the action in the newest row, its results, and the row that it led to.

        Args:
            mask: 0 where the task is complete, so that no value follows, else 1.
            ends: whether the episode ends there, for any reason.

        Raises:
            DataError: writing failed, for example on a full disk; the stream is unchanged.
        """
        assert self.episodes.is_open
        row = self.rows
        columns = [_columns(row - 1, action, reward, mask, ends=False)]
        if ends:
            columns.append(_columns(row, np.zeros_like(action), 0.0, 1.0, ends=True))
        self._append(frame, latents, columns)
        if ends:
            self._note_end(row)

    def cut_off(self) -> None:
        """End the unfinished episode at its newest row; one without a transition is removed."""
        episodes = self.episodes
        assert episodes.is_open
        if self.rows - episodes.open_first == 1:
            self.rows -= 1
            self._newest = {}
            return
        shape, _ = self._arrays['actions']
        self._write(_columns(self.rows - 1, np.zeros(shape), 0.0, 1.0, ends=True))
        self._note_end(self.rows - 1)

    def read(self, name: str, start: int, end: int) -> np.ndarray:
        """A copy of the rows from `start` to `end` of an array."""
        shape, dtype = self._arrays[name]
        data = np.empty((end - start, *shape), dtype)
        rest = data.reshape(-1).view(np.uint8).data
        place = self._starts[name] + start * self._row_bytes(name)
        while len(rest):  # Linux reads at most 2 GiB at once.
            read = os.preadv(self._files[name].fileno(), [rest[:READ_BYTES]], place)
            if not read:
                raise DataError(f'{self.path / name}.npy ends before row {end}')
            rest, place = rest[read:], place + read
        return data

    def read_frames(self, start: int, end: int) -> Any:
        """The same of the observations, an array or several by name."""
        return unnamed(
            {
                name: self.read(array_name(name), start, end)
                for name in named(self.layout.frame_shape)
            }
        )

    @property
    def record(self) -> dict[str, Any]:
        """The number of rows and the checksums of the arrays: JSON values for a checkpoint.

        The newest row of an unfinished episode is in no checksum.
        """
        return {'rows': self.rows, 'crc32': dict(self._crc)}

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise DataError if the rows differ from those of a `record`."""
        for name, crc in record['crc32'].items():
            if self._crc[name] != crc:
                raise DataError(
                    f'{self.path / name}.npy: its first {record["rows"]:,} rows are not what was '
                    'written (checksum differs)'
                )

    def sync(self) -> None:
        """Sync everything to the disk."""
        with _faults(self.path):
            for file in self._files.values():
                sync_file(file)

    def trim(self) -> None:
        """Cut the files to their rows, for other readers; nothing can be appended afterwards."""
        with _faults(self.path):
            for name in self._arrays:
                self._resize(name, self.rows)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _check_files(self) -> None:
        for name, row in self._arrays.items():
            path = self.path / f'{name}.npy'
            try:
                map_rows(path, *row, self.rows)
            except (OSError, ValueError) as error:
                raise DataError(f'{path}: cannot be read: {error}') from error

    def _open(self) -> None:
        mode = 'r+b' if self.rows else 'xb+'
        for name, (shape, dtype) in self._arrays.items():
            # Unbuffered: a written row is at once in the file, and so in every mapping of it.
            file = open(self.path / f'{name}.npy', mode, buffering=0)  # noqa: SIM115
            self._files[name] = file
            with _faults(self.path):
                write_npy_header(file, (0, *shape), dtype)
            self._starts[name] = file.tell()
        self._drop_leftovers()
        self._reserve()
        if not self.rows:
            return
        ends = np.flatnonzero(self.read('terminals', 0, self.rows - 1))
        self._ends, self._num_ends = ends, len(ends)
        newest = self.rows - 1
        self._crc = {name: self._checksum(name, newest) for name in self._arrays}
        self._newest = {
            name: self.read(name, newest, self.rows).tobytes()
            for name in filter(_is_shown, self._arrays)
        }

    def _drop_leftovers(self) -> None:
        """Remove what a killed process has written behind the rows that are opened.

        Their episode is unfinished: the newest row has only its observation.
        """
        with _faults(self.path):
            for name in self._arrays:
                self._resize(name, self.rows if _is_shown(name) else max(self.rows - 1, 0))

    def _reserve(self) -> None:
        """Make room for at most EXTENT more rows, of zeros."""
        capacity = (self.rows // EXTENT + 1) * EXTENT
        with _faults(self.path):
            for name in self._arrays:
                self._resize(name, capacity)
        self.capacity = capacity

    def _resize(self, name: str, rows: int) -> None:
        file, (shape, dtype) = self._files[name], self._arrays[name]
        file.truncate(self._starts[name] + rows * self._row_bytes(name))
        file.seek(0)
        write_npy_header(file, (rows, *shape), dtype)

    def _append(self, frame: Any, latents: np.ndarray | None, columns: list[Values]) -> None:
        """Write a row's observation and the values that complete rows; then count the row."""
        shown: Values = [
            (array_name(name), self.rows, value) for name, value in named(frame).items()
        ]
        assert {name for name, _, _ in shown} == set(filter(is_observation, self._arrays))
        for name, _, value in shown:
            assert (value.shape, value.dtype) == self._arrays[name]
        if self.rows == self.capacity:
            self._reserve()
        if self.layout.latents is not None:
            shown.append(('latents', self.rows, latents))
        self._write([*shown, *itertools.chain(*columns)])
        self.rows += 1

    def _write(self, values: Values) -> None:
        crc, newest = dict(self._crc), dict(self._newest)
        for name, row, value in values:
            shape, dtype = self._arrays[name]
            array = np.asarray(value, dtype)
            assert array.shape == shape
            complete = content = array.tobytes()
            if _is_shown(name):
                complete, newest[name] = newest.get(name, b''), content
            crc[name] = zlib.crc32(complete, crc[name])
            data = memoryview(content)
            place = self._starts[name] + row * len(data)
            with _faults(self.path):
                while data:  # On a full disk a part may be written before the error is raised.
                    written = os.pwrite(self._files[name].fileno(), data, place)
                    data, place = data[written:], place + written
        self._crc, self._newest = crc, newest

    def _note_end(self, row: int) -> None:
        if self._num_ends == len(self._ends):
            self._ends = np.resize(self._ends, max(1_024, 2 * len(self._ends)))
        self._ends[self._num_ends] = row
        self._num_ends += 1

    def _checksum(self, name: str, rows: int) -> int:
        crc, step = 0, max(1, READ_BYTES // self._row_bytes(name))
        for start in range(0, rows, step):
            crc = zlib.crc32(self.read(name, start, min(start + step, rows)).data, crc)
        return crc

    def _row_bytes(self, name: str) -> int:
        shape, dtype = self._arrays[name]
        return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


class Replay:
    """The streams of all environments of a run; a context manager.

    Attributes:
        path: the replay's folder.
        streams: one for each environment.
    """

    def __init__(
        self,
        path: Path,
        origin: str,
        layout: RowLayout,
        streams: int,
        records: Sequence[Mapping[str, Any]] | None = None,
        action_range: ActionRange | None = None,
    ) -> None:
        """Make an empty replay, replacing an existing one, or open one as of a checkpoint.

        Args:
            origin: where the data come from, for the record.
            streams: number of streams.
            records: of each stream, as `commit` returned them; later rows are dropped.
            action_range: what the actions stand for, where that is not [-1, 1]; for the record.

        Raises:
            DataError: the replay of the records is missing, damaged or of another shape.
        """
        self.path = path
        self._origin, self._layout, self._action_range = origin, layout, action_range
        if records is None and path.exists():
            shutil.rmtree(path)
        if records is not None and not path.is_dir():
            raise DataError(f'{path}: the replay of this checkpoint is missing')
        names = ['train', *(f'train_{i}' for i in range(1, streams))]
        self.streams: list[Stream] = []
        with ExitStack() as stack:
            for i, name in enumerate(names):
                rows = 0 if records is None else int(records[i]['rows'])
                self.streams.append(Stream(path / name, layout, rows))
                stack.callback(self.streams[-1].close)
                if records is not None:
                    self.streams[-1].check(records[i])
            self.commit()  # `replay.json` may count rows that are dropped.
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
                for stream in self.streams:
                    stream.trim()
        finally:
            for stream in self.streams:
                stream.close()

    @property
    def capacity(self) -> int:
        """Number of rows that the files have room for; when it changes, map the files again."""
        return sum(stream.capacity for stream in self.streams)

    def commit(self) -> list[dict[str, Any]]:
        """Sync everything and write the record of it; return each stream's record.

        Raises:
            DataError: writing failed, for example on a full disk.
        """
        for stream in self.streams:
            stream.sync()
        records = {stream.path.name: stream.record for stream in self.streams}
        values = {
            'format_version': FORMAT_VERSION,
            'origin': self._origin,
            'layout': asdict(self._layout),
            'action_range': self._action_range.json if self._action_range else None,
            'streams': records,
            'created': datetime.now(UTC).isoformat(timespec='seconds'),
        }
        with _faults(self.path):
            write_json(self.path / RECORD, values)
        return list(records.values())


def map_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> np.ndarray:
    """The first rows of an array, as a read-only memory map.

    The header's number of rows is ignored: after a kill it may differ from the file's.

    Raises:
        OSError: the file cannot be read.
        ValueError: its rows are of another shape or type, or fewer.
    """
    with path.open('rb') as file:
        found, is_fortran, found_dtype = read_npy_header(file)
        start, size = file.tell(), file.seek(0, os.SEEK_END)
    there = (size - start) // max(1, math.prod(shape) * dtype.itemsize)
    if found[1:] != shape or found_dtype != dtype or is_fortran or there < rows:
        raise ValueError(
            f'{path.name} holds {there:,} rows of {found_dtype} {found[1:]} in place of at least '
            f'{rows:,} of {dtype} {shape}'
        )
    return np.memmap(path, dtype, 'r', start, (rows, *shape))


def _columns(row: int, action: np.ndarray, reward: float, mask: float, *, ends: bool) -> Values:
    """The values of a row besides its frame."""
    return [
        ('actions', row, action),
        ('rewards', row, reward),
        ('masks', row, mask),
        ('terminals', row, ends),
    ]


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f'{path}: the replay cannot be written: {error.strerror or error}; what was appended '
            'before is whole'
        ) from error
