"""LeRobot datasets in both layouts, written here frame by frame as the library writes them."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.observations import observation_keys
from data_pipeline.sources.files import file_splits
from data_pipeline.store.frame_store import FrameStore
from data_pipeline.store.writer import write_store

FPS = 10
FRONT, HAND = 'observation.images.front', 'observation.images.hand'
KEYS = observation_keys([f'front={FRONT}', f'hand={HAND}', 'state=observation.state'])
LENGTHS = (70, 5, 1, 9)
"""The first is longer than the blocks that videos are read in; the third has no transition."""
LOSSLESS = ('-crf', '0')

Episodes = list[dict[str, np.ndarray]]


def make_episodes() -> Episodes:
    rng = np.random.default_rng(0)
    return [
        {
            FRONT: rng.integers(1, 256, (steps, 32, 48, 3), np.uint8),
            HAND: rng.integers(1, 256, (steps, 10, 12, 3), np.uint8),
            'observation.state': rng.normal(size=(steps, 4)).astype(np.float32),
            'observation.effort': rng.normal(size=(steps, 1)).astype(np.float32),
            'action': rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            'next.reward': rng.normal(size=steps).astype(np.float32),
            'next.done': np.arange(steps) == (steps - 1 if number != 1 else -1),
        }
        for number, steps in enumerate(LENGTHS)
    ]


def write_video(path: Path, frames: np.ndarray, codec: str, options: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (frames.shape[2], frames.shape[1])
    # A group of pictures of two frames, as the library has it.
    options = ('-g', '2', *options)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=FPS,
        codec=codec,
        output_params=list(options),
        macro_block_size=1,
        pix_fmt_out='rgb24' if codec == 'libx264rgb' else 'yuv420p',
        quality=None,
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def rows_of(episodes: Episodes, numbers: list[int]) -> pa.Table:
    """The Parquet rows of some episodes; HAND is an encoded image."""
    columns: dict[str, list] = {}
    for number in numbers:
        episode, start = episodes[number], sum(LENGTHS[:number])
        steps = len(episode['action'])
        for name, array in episode.items():
            if name == HAND:
                values: list[Any] = []
                for image in array:
                    buffer = io.BytesIO()
                    Image.fromarray(image).save(buffer, format='PNG')
                    values.append({'bytes': buffer.getvalue(), 'path': None})
            elif name == FRONT:
                continue
            else:
                values = (array[:, 0] if array.shape[1:] == (1,) else array).tolist()
            columns.setdefault(name, []).extend(values)
        columns.setdefault('episode_index', []).extend([number] * steps)
        columns.setdefault('frame_index', []).extend(range(steps))
        columns.setdefault('index', []).extend(range(start, start + steps))
    return pa.table(columns)


def info_of(version: str, features: dict[str, Any]) -> dict[str, Any]:
    is_old = version == 'v2.1'
    return {
        'codebase_version': version,
        'fps': FPS,
        'chunks_size': 2 if is_old else 1000,
        'total_episodes': len(LENGTHS),
        'splits': {'train': f'0:{len(LENGTHS)}'},
        'data_path': 'data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet'
        if is_old
        else 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        'video_path': 'videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4'
        if is_old
        else 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
        'features': features,
    }


def write_dataset(
    folder: Path,
    version: str,
    episodes: Episodes,
    codec: str = 'libx264rgb',
    options: Any = LOSSLESS,
) -> Path:
    """Two files in version 3.0: episodes 0 and 1, then the others."""
    kinds = {FRONT: 'video', HAND: 'image', 'next.done': 'bool'}
    features = {
        name: {'dtype': kinds.get(name, 'float32'), 'shape': list(array.shape[1:]) or [1]}
        for name, array in episodes[0].items()
    }
    features |= {name: {'dtype': 'int64', 'shape': [1]} for name in ('episode_index', 'index')}
    (folder / 'meta').mkdir(parents=True)
    (folder / 'meta' / 'info.json').write_text(json.dumps(info_of(version, features)))
    if version == 'v2.1':
        lines = []
        for number, episode in enumerate(episodes):
            chunk, name = f'chunk-{number // 2:03d}', f'episode_{number:06d}'
            path = folder / 'data' / chunk / f'{name}.parquet'
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows_of(episodes, [number]), path)
            write_video(
                folder / 'videos' / chunk / FRONT / f'{name}.mp4', episode[FRONT], codec, options
            )
            lines.append(
                json.dumps(
                    {'episode_index': number, 'tasks': ['x'], 'length': len(episode['action'])}
                )
            )
        (folder / 'meta' / 'episodes.jsonl').write_text('\n'.join(lines) + '\n')
        return folder
    entries = []
    for file, numbers in enumerate(([0, 1], [2, 3])):
        path = folder / 'data' / 'chunk-000' / f'file-{file:03d}.parquet'
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows_of(episodes, numbers), path)
        video = folder / 'videos' / FRONT / 'chunk-000' / f'file-{file:03d}.mp4'
        write_video(video, np.concatenate([episodes[n][FRONT] for n in numbers]), codec, options)
        start = 0
        for number in numbers:
            entries.append(
                {
                    'episode_index': number,
                    'length': LENGTHS[number],
                    'data/chunk_index': 0,
                    'data/file_index': file,
                    f'videos/{FRONT}/chunk_index': 0,
                    f'videos/{FRONT}/file_index': file,
                    f'videos/{FRONT}/from_timestamp': start / FPS,
                }
            )
            start += LENGTHS[number]
    path = folder / 'meta' / 'episodes' / 'chunk-000' / 'file-000.parquet'
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), path)
    return folder


@pytest.fixture(scope='module')
def episodes() -> Episodes:
    return make_episodes()


@pytest.fixture(scope='module', params=['v2.1', 'v3.0'])
def dataset(request, episodes, tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp('lerobot') / 'd', request.param, episodes)


def prepared(tmp_path: Path, folder: Path, keys: Any = KEYS) -> FrameStore:
    return write_store(tmp_path / 'store', 'd', file_splits(folder, 'd', keys), overwrite=True)


def test_rows_are_those_of_the_files(dataset, episodes, tmp_path):
    split = prepared(tmp_path, dataset).splits['train']
    used = [episode for episode in episodes if len(episode['action']) > 1]
    expected: dict[str, list] = {name: [] for name in ('front', 'hand', 'state', 'actions')}
    labels: list[tuple[float, float]] = []
    for episode in used:
        for name, key in (*KEYS.items(), ('actions', 'action')):
            expected[name].extend(episode[key])
        labels += zip(episode['next.reward'], 1 - episode['next.done'], strict=True)
        if episode['next.done'][-1]:  # What follows is not stored, and never used.
            for name, key in KEYS.items():
                expected[name].append(episode[key][-1])
            expected['actions'].append(np.zeros(2))
            labels.append((0, 1))
    for name in KEYS:
        np.testing.assert_array_equal(split.observations[name], np.stack(expected[name]))
    np.testing.assert_array_equal(split.actions, np.float32(expected['actions']))
    np.testing.assert_array_equal(split.labels['rewards'], np.float32([r for r, _ in labels]))
    np.testing.assert_array_equal(split.labels['masks'], np.float32([m for _, m in labels]))
    assert split.lengths.tolist() == [71, 5, 10]


def test_one_key_and_notes(dataset, episodes, tmp_path):
    store = prepared(tmp_path, dataset, {'': 'observation.effort'})
    assert store.splits['train'].observations.shape == (86, 1)
    source = store.manifest.sources['train']
    notes = ' '.join(source['notes'])
    assert 'masks are 1 - next.done' in notes
    assert 'skipped episodes of one row: 1' in notes
    assert f'ignored: {FRONT}, {HAND}, observation.state' in notes
    assert source['keys'] == {'observation': 'observation.effort'}
    for keys, message in (
        ({}, rf'not a single observation; choose .*from observation\.effort, {FRONT}'),
        ({'': 'waist'}, "no observation 'waist'"),
    ):
        with pytest.raises(DataError, match=message):
            file_splits(dataset, 'd', keys)


def test_lossy_videos_as_the_library_writes_them(tmp_path, episodes):
    """AV1: smooth pictures come back nearly as they were, in their order."""
    shades = np.linspace(20, 220, LENGTHS[0]).astype(np.uint8)
    smooth = [dict(episode) for episode in episodes]
    for episode in smooth:
        episode[FRONT] = (
            np.zeros_like(episode[FRONT]) + shades[: len(episode['action']), None, None, None]
        )
    options = ('-crf', '30', '-preset', '12', '-loglevel', 'error')
    folder = write_dataset(tmp_path / 'd', 'v3.0', smooth, 'libsvtav1', options)
    found = prepared(tmp_path, folder, {'': FRONT}).splits['train'].observations
    assert np.abs(found[:70].mean(axis=(1, 2, 3)) - shades).max() < 4
    assert np.abs(found[71:76].mean(axis=(1, 2, 3)) - shades[:5]).max() < 4


def without(name: str) -> Any:
    return lambda folder: [path.unlink() for path in folder.rglob(name)]


def rewritten(name: str, change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        path = sorted(folder.rglob(name))[0]
        path.write_bytes(change(path.read_bytes()))

    return rewrite


FAULTS = {
    'no parquet': (
        without('*0.parquet'),
        r'\.parquet: cannot be read: No such file|no meta/episodes',
    ),
    'no video': (without('*0.mp4'), r'\.mp4: cannot be read: No such file'),
    'half a parquet': (rewritten('*000.parquet', lambda x: x[: len(x) // 2]), r'cannot be read: '),
    'no video in it': (rewritten('*.mp4', lambda x: b'x' * 99), r'\.mp4: cannot be read'),
    'version': (
        rewritten('info.json', lambda x: x.replace(b'v2.1', b'v1.6').replace(b'v3.0', b'v1.6')),
        r'LeRobot v1\.6 is not supported; versions 2\.1 and 3\.0 are',
    ),
    'info': (rewritten('info.json', lambda x: b'{}'), r"not in LeRobot's layout: no 'features'"),
    'longer': (
        rewritten('episodes.jsonl', lambda x: x.replace(b'"length": 70', b'"length": 71')),
        r'has 70 rows of it, meta says 71',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_damaged_datasets_are_refused(dataset, tmp_path, fault):
    spoil, message = FAULTS[fault]
    if fault == 'longer' and not (dataset / 'meta' / 'episodes.jsonl').exists():
        pytest.skip('only of version 2.1')
    folder = shutil.copytree(dataset, tmp_path / 'd')
    spoil(folder)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, folder, {'': FRONT})


def test_a_video_that_ends_too_early(tmp_path, episodes):
    short = [dict(episode) for episode in episodes]
    short[0][FRONT] = short[0][FRONT][:-1]
    folder = write_dataset(tmp_path / 'd', 'v2.1', short)
    with pytest.raises(DataError, match=r'episode_000000\.mp4 ends after 69 of its 70 frames'):
        prepared(tmp_path, folder, {'': FRONT})
