"""A replay as a frame store, whose splits are the replay's streams."""

import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.action_range import ActionRange
from data_pipeline.array_names import LABEL_ARRAYS
from data_pipeline.data_dir import check_name, dataset_folder
from data_pipeline.errors import DataError
from data_pipeline.observations import named, pick_observations
from data_pipeline.replay import READ_BYTES, RECORD, Episodes, RowLayout, map_rows
from data_pipeline.schema import from_json, load_json
from data_pipeline.store.frame_store import FrameStore, Split, open_store
from data_pipeline.store.manifest import FORMAT_VERSION, ArrayEntry, Manifest, SplitEntry


@dataclass(frozen=True)
class _StreamRecord:
    """See `Stream.record`."""

    rows: int
    crc32: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f'a stream of {self.rows} rows')


@dataclass(frozen=True)
class _Record:
    """`replay.json`."""

    format_version: int
    origin: str
    layout: RowLayout
    action_range: ActionRange | None
    streams: Mapping[str, _StreamRecord]
    created: str

    def __post_init__(self) -> None:
        for name in self.streams:
            if not re.fullmatch('train(_[1-9][0-9]*)?', name):
                raise ValueError(f'no stream is called {name!r}')
        shapes, dtypes = named(self.layout.frame_shape), named(self.layout.frame_dtype)
        if shapes.keys() != dtypes.keys():
            raise ValueError(f'shapes of {list(shapes)}, types of {list(dtypes)}')
        for name in filter(None, shapes):
            check_name(name)
        if self.action_range is not None and len(self.action_range.low) != self.layout.action_dim:
            raise ValueError(
                f'a range of {len(self.action_range.low)} actions, of {self.layout.action_dim}'
            )


def is_replay(path: Path) -> bool:
    """Whether a folder holds a replay."""
    return (path / RECORD).exists()


def open_data(data_dir: str, name: str) -> FrameStore:
    """Open a dataset by its name, see `dataset_folder`, or a replay by its folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if is_replay(Path(name)):
        return open_replay(Path(name))
    return open_store(dataset_folder(data_dir, name))


def open_replay(path: Path) -> FrameStore:
    """Open a replay as a frame store, with the rows of its last `commit`.

    A stream's unfinished episode ends at its newest row; if it has only one row, and so no
    transition, it is left out. The dataset's name is RUN-replay, of the replay RUN/replay.
    Checksums are not compared; see `verify_replay`.

    Raises:
        DataError: it is damaged, or holds no transition.
    """
    with _damage(path):
        record = from_json(_Record, load_json(path / RECORD))
        splits = {
            name: split
            for name, stream in record.streams.items()
            if (split := _closed_split(path / name, record.layout, stream.rows)) is not None
        }
    if not splits:
        raise DataError(f'{path}: this replay holds no transition yet')
    entries = {
        name: SplitEntry(
            len(split.terminals),
            len(split.lengths),
            {
                key: ArrayEntry(array.shape, array.dtype.str, array.nbytes, '')
                for key, array in split.arrays.items()
            },
        )
        for name, split in splits.items()
    }
    scaled = {'action_range': record.action_range.json} if record.action_range else {}
    sources = {
        name: {
            'path': record.origin,
            'bytes': sum(array.nbytes for array in split.arrays.values()),
            'sha256': '',
            **scaled,
        }
        for name, split in splits.items()
    }
    versions = {'numpy': np.__version__}
    name = _name_of(path)
    manifest = Manifest(FORMAT_VERSION, name, sources, entries, versions, record.created)
    return FrameStore(path, manifest, splits)


def verify_replay(path: Path) -> None:
    """Read all rows of the last `commit`, and compare them with their checksums.

    Raises:
        DataError: they differ from what was written.
    """
    with _damage(path):
        record = from_json(_Record, load_json(path / RECORD))
        for name, stream in record.streams.items():
            for key, row in record.layout.arrays.items() if stream.rows else ():
                # While an episode is unfinished, its newest row is in no checksum.
                complete = {stream.rows, stream.rows - 1}
                if stream.crc32.get(key) not in _crcs(path / name / f'{key}.npy', *row, complete):
                    raise ValueError(
                        f'the {stream.rows:,} rows of {name}/{key}.npy are not what was written '
                        '(checksum differs)'
                    )


def _crcs(path: Path, shape: tuple[int, ...], dtype: np.dtype, counts: set[int]) -> list[int]:
    """The checksums of an array's first rows, for each of these counts."""
    array = map_rows(path, shape, dtype, max(counts))
    step = max(1, READ_BYTES // array[0].nbytes)
    crc, begin, found = 0, 0, []
    for end in sorted(counts):
        for start in range(begin, end, step):
            crc = zlib.crc32(array[start : min(start + step, end)].data, crc)
        begin = end
        found.append(crc)
    return found


def _name_of(path: Path) -> str:
    """The name of a replay as a dataset, by which those of several runs can be told apart."""
    try:
        return check_name(f'{path.resolve().parent.name}-replay')
    except DataError:  # Folders of runs may have any name.
        return 'replay'


def _closed_split(folder: Path, layout: RowLayout, rows: int) -> Split | None:
    """The rows of a stream, with its last trajectory ended; None if there is no transition."""
    if rows < 2:
        return None
    arrays: dict[str, np.ndarray] = {
        name: map_rows(folder / f'{name}.npy', *row, rows) for name, row in layout.arrays.items()
    }
    episodes = Episodes(np.flatnonzero(arrays['terminals']), rows)
    if episodes.transitions == 0:
        return None
    if rows - episodes.open_first == 1:
        arrays = {name: array[:-1] for name, array in arrays.items()}
    terminals = np.array(arrays['terminals'])
    terminals[-1] = True
    labels = {name: arrays[name] for name in LABEL_ARRAYS}
    required = (pick_observations(arrays), arrays['actions'], terminals)
    return Split(folder.name, folder, *required, {}, labels)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError, TypeError, ValueError) as error:  # TypeError: an invalid dtype.
        raise DataError(f'{path}: damaged replay: {error}') from error
