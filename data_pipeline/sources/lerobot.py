"""LeRobot datasets in the layouts of versions 2.1 and 3.0: Parquet files of rows, and videos.

    meta/info.json                               features, paths, frames a second, splits
    2.1: meta/episodes.jsonl                     each episode's length
         data/chunk-000/episode_000000.parquet   a file an episode, as its video files
    3.0: meta/episodes/chunk-000/file-000.parquet   each episode's length, files, and start in these
         data/chunk-000/file-000.parquet         several episodes a file

A row holds an observation and the action taken there. The observation after the last row is not
stored. The last action is not used; where `next.done` is set, the row is a transition to its own
observation, whose value the mask excludes. Row i of an episode shows frame i of its video, which
its time stamp and the video's frames a second must confirm.
Source: https://huggingface.co/docs/lerobot
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.errors import DataError, first_line
from data_pipeline.files import file_sha256
from data_pipeline.observations import array_name, choose_keys
from data_pipeline.schema import load_json
from data_pipeline.source_split import SPLIT_NAMES, Note, SourceSplit
from data_pipeline.sources.arrays import fit_arrays
from data_pipeline.sources.pictures import decode_images, read_video, take_blocks
from data_pipeline.sources.rows import lost_rewards
from data_pipeline.sources.source_files import reading, taken_from
from data_pipeline.sources.table import settle_last_actions

_ACTION, _REWARD, _DONE = 'action', 'next.reward', 'next.done'
_EPISODE, _FRAME, _TIME = 'episode_index', 'frame_index', 'timestamp'
_COUNTERS = {'timestamp', 'frame_index', 'episode_index', 'index', 'task_index'}


@dataclass(frozen=True)
class Episode:
    """The position of an episode in the files.

    Attributes:
        number, length: its index, and its number of rows.
        data: the Parquet file.
        videos: by feature, the file and the frame of it that is the episode's first.
        fps: frames a second; 0 if no videos are read.
    """

    number: int
    length: int
    data: Path
    videos: Mapping[str, tuple[Path, int]]
    fps: float

    @property
    def files(self) -> list[Path]:
        """All files of the episode."""
        return [self.data, *(path for path, _ in self.videos.values())]


@dataclass(frozen=True)
class Features:
    """The features that are read of each row.

    Attributes:
        columns: features by the store's names.
        shapes: of numbers in a Parquet file, by feature.
        pictures, videos: features that are images in the Parquet file, or frames of a video.
    """

    columns: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    pictures: frozenset[str]
    videos: frozenset[str]


def lerobot_splits(folder: Path, keys: Mapping[str, str]) -> dict[str, SourceSplit]:
    """The splits `train` and, where there is one, `val` of a LeRobot dataset.

    Args:
        folder: of the dataset.
        keys: of `observation_keys`: which features are the observations; may be empty if there is
            only one.

    Raises:
        DataError: another version, a missing or damaged file, no such feature, or one of an
            unsuitable type or shape.
    """
    with _faults(folder / 'meta' / 'info.json'):
        info = load_json(folder / 'meta' / 'info.json')
    with _faults(folder):
        offered = sorted(name for name in info['features'] if name.startswith('observation'))
        keys = choose_keys(folder, offered, keys, info['features'])
        features = _find_features(folder, info['features'], keys)
        episodes = _find_episodes(folder, info, features.videos)
        held = info.get('splits') or {'train': f'0:{len(episodes)}'}
        chosen = {
            split: _episodes_in(episodes, held[name])
            for split, names in SPLIT_NAMES.items()
            for name in names
            if name in held
        }
    if 'train' not in chosen:
        raise DataError(f'{folder}: no split named train, only {", ".join(held)}')
    others = sorted(info['features'].keys() - set(features.columns.values()) - _COUNTERS)
    known = {name for names in SPLIT_NAMES.values() for name in names}
    unused = [f'split {name}' for name in held if name not in known]
    return {
        split: _split(
            f'{folder}, split {split}',
            folder,
            within,
            features,
            keys,
            others + unused if split == 'train' else others,
        )
        for split, within in chosen.items()
    }


def _find_features(folder: Path, held: Mapping[str, Any], keys: Mapping[str, str]) -> Features:
    if _ACTION not in held:
        raise DataError(f'{folder}: no feature {_ACTION}, only {", ".join(sorted(held))}')
    if len(shape := held[_ACTION]['shape']) != 1:
        raise DataError(f'{folder}: {_ACTION} has shape {shape} in a row; it must be a vector')
    columns = {'actions': _ACTION}
    if {_REWARD, _DONE} <= held.keys():
        columns |= {'rewards': _REWARD, 'dones': _DONE}
    columns |= {array_name(name): key for name, key in sorted(keys.items())}
    kinds = {key: held[key]['dtype'] for key in columns.values()}
    for key in columns.values():
        if (held[key].get('info') or {}).get('video.is_depth_map'):
            raise DataError(f'{folder}: {key} is a depth map; only images of 8 bits can be read')
    return Features(
        columns=columns,
        shapes={
            key: tuple(held[key]['shape'])
            for key, kind in kinds.items()
            if kind not in ('image', 'video')
        },
        pictures=frozenset(key for key, kind in kinds.items() if kind == 'image'),
        videos=frozenset(key for key, kind in kinds.items() if kind == 'video'),
    )


def _find_episodes(folder: Path, info: Mapping[str, Any], videos: frozenset[str]) -> list[Episode]:
    version = str(info['codebase_version'])
    if version.startswith('v2.'):
        lines = (folder / 'meta' / 'episodes.jsonl').read_text(encoding='utf-8').split('\n')
        entries = [json.loads(line) for line in lines if line.strip()]
        find = _episode_of_two
    elif version.startswith('v3.'):
        paths = _meta_tables(folder)
        if not paths:
            raise DataError(f'{folder}: no meta/episodes/*/*.parquet')
        entries = [entry for path in paths for entry in _read_table(path).to_pylist()]
        find = _episode_of_three
    else:
        raise DataError(f'{folder}: LeRobot {version} is not supported; versions 2.1 and 3.0 are')
    episodes = [find(folder, info, entry, videos) for entry in entries]
    episodes.sort(key=lambda episode: episode.number)
    numbers = [episode.number for episode in episodes]
    if len(set(numbers)) < len(numbers):
        raise DataError(f'{folder}: an episode is listed more than once in meta')
    for name, found in (
        ('total_episodes', len(episodes)),
        ('total_frames', sum(episode.length for episode in episodes)),
    ):
        if info.get(name, found) != found:
            raise DataError(
                f'{folder}: {name} is {info[name]} in meta/info.json, but {found} in the list of '
                'episodes in meta: one of the two is not whole'
            )
    return episodes


def _episode_of_two(
    folder: Path, info: Mapping[str, Any], entry: Mapping[str, Any], videos: frozenset[str]
) -> Episode:
    """The episode of a line of `meta/episodes.jsonl`."""
    number = _count(entry, _EPISODE)
    chunk = number // max(1, _count(info, 'chunks_size'))
    names = {'episode_index': number, 'episode_chunk': chunk}
    return Episode(
        number,
        _count(entry, 'length'),
        folder / info['data_path'].format(**names),
        {key: (folder / info['video_path'].format(video_key=key, **names), 0) for key in videos},
        _fps(info) if videos else 0,
    )


def _episode_of_three(
    folder: Path, info: Mapping[str, Any], entry: Mapping[str, Any], videos: frozenset[str]
) -> Episode:
    """The episode of a row of `meta/episodes`."""
    fps = _fps(info) if videos else 0
    return Episode(
        _count(entry, _EPISODE),
        _count(entry, 'length'),
        folder / _file_path(info['data_path'], entry, 'data'),
        {
            key: (
                folder / _file_path(info['video_path'], entry, f'videos/{key}', key),
                round(_number(entry, f'videos/{key}/from_timestamp') * fps),
            )
            for key in videos
        },
        fps,
    )


def _meta_tables(folder: Path) -> list[Path]:
    """The files of the list of episodes of version 3.0; macOS adds hidden ones on some disks."""
    found = folder.glob('meta/episodes/*/*.parquet')
    return sorted(path for path in found if not path.name.startswith('.'))


def _number(values: Mapping[str, Any], name: str) -> float:
    """An entry that must be a number from 0 to 2^31."""
    value = values[name]
    if type(value) not in (int, float) or not 0 <= value <= 2**31:
        raise ValueError(f'{name} is {value!r}, not a number from 0 to 2^31')
    return value


def _count(values: Mapping[str, Any], name: str) -> int:
    """An entry that must be an integer from 0 to 2^31."""
    value = _number(values, name)
    if value != int(value):
        raise ValueError(f'{name} is {value!r}, not an integer')
    return int(value)


def _fps(info: Mapping[str, Any]) -> float:
    if not (fps := _number(info, 'fps')):
        raise ValueError('fps is 0')
    return fps


def _episodes_in(episodes: Sequence[Episode], numbers: str) -> list[Episode]:
    """The episodes of a split, whose numbers are given as `first:end`."""
    found = re.fullmatch(r'(\d+):(\d+)', numbers)
    if not found or int(found[2]) > len(episodes):
        raise ValueError(f'split {numbers!r} of {len(episodes)} episodes; it must be first:end')
    return [e for e in episodes if int(found[1]) <= e.number < int(found[2])]


def _file_path(template: str, entry: Mapping[str, Any], prefix: str, video_key: str = '') -> str:
    return template.format(
        video_key=video_key,
        chunk_index=_count(entry, f'{prefix}/chunk_index'),
        file_index=_count(entry, f'{prefix}/file_index'),
    )


def _split(
    origin: str,
    folder: Path,
    episodes: Sequence[Episode],
    features: Features,
    keys: Mapping[str, str],
    others: Sequence[str],
) -> SourceSplit:
    used = [episode for episode in episodes if episode.length > 1]
    if not used:
        raise DataError(f'{origin}: no episode has two rows, as a transition needs')
    first: dict[str, np.ndarray] = {}
    for name, block in _rows(origin, used[:1], features):
        first.setdefault(name, block)
    fitted = fit_arrays(
        origin, {name: (block.shape[1:], block.dtype) for name, block in first.items()}
    )

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        lost, are_others = 0, False
        for name, block in _rows(origin, used, features):
            if name == 'rewards':  # Of a whole episode, whose last row is no transition.
                lost += bool(np.isfinite(block[-1]) and block[-1] != 0)
                are_others |= bool(block[:-1].any())
            yield name, fitted[name].convert(block)
        for fit in fitted.values():
            if fit.note:
                note(fit.note)
        note(
            'masks are 1 - next.done; where it is set in the last row of an episode, the next '
            'observation is that of the same row'
            if 'rewards' in fitted
            else f'without {_REWARD} and {_DONE}, the data have no rewards and masks'
        )
        for line in lost_rewards(
            origin,
            lost,
            are_others,
            'last rows of episodes',
            f'If the task ends there, set {_DONE} in these rows. If not, store each reward in the '
            'row of the action that earned it',
        ):
            note(line)
        if len(used) < len(episodes):
            note(f'skipped episodes of one row: {len(episodes) - len(used):,}')
        if others:
            note(f'ignored: {", ".join(others)}')

    files = sorted({path for episode in used for path in episode.files})
    with _faults(folder):
        meta = [folder / 'meta' / 'info.json', folder / 'meta' / 'episodes.jsonl']
        files += [path for path in (*meta, *_meta_tables(folder)) if path.exists()]
        description = {
            'path': str(folder.resolve()),
            'bytes': sum(path.stat().st_size for path in files),
            'sha256': _digest(files),
        }
    return SourceSplit(
        origin=origin,
        description=taken_from(description, keys),
        arrays={name: fit.spec for name, fit in fitted.items()},
        rows=sum(episode.length for episode in used),
        rows_are_known=False,
        read=read,
    )


def _rows(
    origin: str, episodes: Sequence[Episode], features: Features
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a store, episode after episode, in blocks."""
    videos = {
        name: _frames_of(origin, episodes, key)
        for name, key in features.columns.items()
        if key in features.videos
    }
    for episode, table in _tables(origin, episodes, features):
        here = f'{origin}, episode {episode.number}'
        numbers = {
            name: _numbers(here, key, table[key], features.shapes[key])
            for name, key in features.columns.items()
            if key in features.shapes
        }
        dones = numbers.pop('dones', np.zeros(1)).reshape(-1)
        extra = int(bool(dones[-1]))
        terminals = np.arange(episode.length + extra) == episode.length + extra - 1
        yield 'terminals', terminals
        if 'rewards' in numbers:
            rewards = numbers.pop('rewards').reshape(-1)
            yield 'rewards', np.pad(rewards, (0, extra)).astype(np.float32)
            masks = 1 - dones.astype(np.float32)
            yield 'masks', np.pad(masks, (0, extra), constant_values=1)
        actions = np.pad(numbers.pop('actions'), ((0, extra), (0, 0)))
        yield 'actions', settle_last_actions(actions, terminals)
        for name, key in features.columns.items():
            if name in numbers:
                blocks = iter([numbers[name]])
            elif key in features.pictures:
                blocks = decode_images(here, key, table[key])
            elif key in features.videos:
                blocks = next(videos[name])
            else:
                continue
            block = np.zeros(0)
            for block in blocks:
                yield name, block
            if extra:
                yield name, block[-1:]


def _tables(
    origin: str, episodes: Sequence[Episode], features: Features
) -> Iterator[tuple[Episode, pa.Table]]:
    """The rows of each episode in the Parquet files; one file is in memory at a time."""
    columns = [*features.shapes, *sorted(features.pictures), _EPISODE, _FRAME]
    if features.videos:
        columns.append(_TIME)
    for path, group in itertools.groupby(episodes, lambda episode: episode.data):
        table = _read_table(path, columns)
        for episode in group:
            rows = table.filter(pc.equal(table[_EPISODE], episode.number))
            if len(rows) != episode.length:
                raise DataError(
                    f'{origin}, episode {episode.number}: {path} has {len(rows)} rows of it, '
                    f'meta says {episode.length}'
                )
            _check_order(f'{origin}, episode {episode.number}: {path}', episode, rows)
            yield episode, rows


def _check_order(place: str, episode: Episode, rows: pa.Table) -> None:
    """Raise DataError if row i is not the episode's row i, or does not show frame i."""
    wanted = np.arange(episode.length)
    if not np.array_equal(_numbers(place, _FRAME, rows[_FRAME], ()), wanted):
        raise DataError(f'{place}: {_FRAME} does not count the rows from 0 on, in their order')
    if episode.videos:
        times = _numbers(place, _TIME, rows[_TIME], ())
        if not np.array_equal(np.round(times * episode.fps), wanted):
            raise DataError(
                f'{place}: {_TIME} is not {_FRAME} / {episode.fps:g}, and so the frames of the '
                'videos are not those of the rows'
            )


def _read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    with _faults(path):
        path.open('rb').close()  # On a missing file, the system's message says more.
        path = path.absolute()  # A relative one with a colon would be an address.
        present = pq.read_schema(path).names
        if missing := [name for name in columns or () if name not in present]:
            raise DataError(f'{path}: no column {", ".join(missing)}')
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


def _numbers(origin: str, key: str, column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column as (rows, *shape)."""
    array = column.combine_chunks()
    try:
        while not pa.types.is_primitive(array.type):
            _check_even(array)
            array = array.flatten()
        _check_even(array)
        return array.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    except (AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f'{origin}: {key} is {column.type}, not {shape} numbers in every row: {error}'
        ) from error


def _check_even(array: Any) -> None:
    """Raise ValueError for missing values, and for lists of different lengths."""
    if array.null_count:
        raise ValueError(f'{array.null_count} are missing')
    lengths = [] if pa.types.is_primitive(array.type) else pc.unique(pc.list_value_length(array))
    if len(lengths) > 1:
        raise ValueError(f'rows of {lengths[0]} and of {lengths[1]}')


def _frames_of(
    origin: str, episodes: Sequence[Episode], key: str
) -> Iterator[Iterator[np.ndarray]]:
    """For each episode, its frames (n, h, w, 3) uint8 in blocks; read these before the next's."""
    for path, group in itertools.groupby(episodes, lambda episode: episode.videos[key][0]):
        fps = episodes[0].fps
        frames, place = read_video(path, fps), 0
        for episode in group:
            first = episode.videos[key][1]
            if first < place:
                frames, place = read_video(path, fps), 0
            for _ in itertools.islice(frames, first - place):
                pass
            place = first + episode.length
            yield take_blocks(f'{origin}, episode {episode.number}: {path}', frames, episode.length)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn exceptions while reading a file of the dataset into a DataError."""
    with reading(path):
        try:
            yield
        except KeyError as error:
            raise DataError(f"{path}: not in LeRobot's layout: no {first_line(error)}") from error
        except (TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{path}: not in LeRobot's layout: {first_line(error)}") from error
        except pa.ArrowException as error:
            raise ValueError(first_line(error)) from error


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the files."""
    digests = [file_sha256(path) for path in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
