"""LeRobot datasets in both layouts, written here frame by frame as the library writes them."""

import io
import json
import shutil
import subprocess
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
from data_pipeline.sources.file_formats import file_splits
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
        columns.setdefault('timestamp', []).extend((np.arange(steps) / FPS).tolist())
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


def test_rewards_of_rows_that_are_no_transitions(tmp_path, episodes):
    """Episode 1 has no `next.done`, so that its last row is no transition."""
    changed = [dict(episode) for episode in episodes]
    folder = write_dataset(tmp_path / 'some', 'v2.1', changed)
    notes = prepared(tmp_path, folder).manifest.sources['train']['notes']
    lost = 'the rewards of 1 last rows of episodes are not used, as no observation follows them'
    assert lost in notes
    for episode in changed:
        last = np.arange(len(episode['action'])) == len(episode['action']) - 1
        episode['next.reward'] = last.astype(np.float32)
        episode['next.done'] = np.zeros_like(episode['next.done'])
    folder = write_dataset(tmp_path / 'all', 'v2.1', changed)
    with pytest.raises(DataError, match='only rewards are in the last rows of episodes, which are'):
        prepared(tmp_path, folder)


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


def with_info(**values: Any) -> Any:
    return rewritten('info.json', lambda data: json.dumps({**json.loads(data), **values}).encode())


def with_feature(key: str, **values: Any) -> Any:
    def change(data: bytes) -> bytes:
        info = json.loads(data)
        info['features'][key] |= values
        return json.dumps(info).encode()

    return rewritten('info.json', change)


def with_rows(change: Any) -> Any:
    """Changes the columns, as lists by name, of the first file of rows."""

    def rewrite(folder: Path) -> None:
        path = sorted((folder / 'data').rglob('*.parquet'))[0]
        columns = pq.read_table(path).to_pydict()
        change(columns)
        pq.write_table(pa.table(columns), path)

    return rewrite


def with_episodes(change: Any) -> Any:
    """Changes the list of episodes of either version."""

    def rewrite(folder: Path) -> None:
        if (path := folder / 'meta' / 'episodes.jsonl').exists():
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            change(entries)
            path.write_text('\n'.join(map(json.dumps, entries)))
        else:
            path = next((folder / 'meta').rglob('*.parquet'))
            entries = pq.read_table(path).to_pylist()
            change(entries)
            pq.write_table(pa.Table.from_pylist(entries), path)

    return rewrite


def reverse_rows(columns: dict[str, list]) -> None:
    for values in columns.values():
        values[:10] = values[9::-1]


def as_picture(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format='PNG')
    return {'bytes': buffer.getvalue(), 'path': None}


def put(key: str, row: int, value: Any) -> Any:
    return with_rows(lambda columns: columns[key].__setitem__(row, value))


def put_two(key: str, *values: Any) -> Any:
    return with_rows(lambda columns: columns[key].__setitem__(slice(0, 2), values))


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n'
FAULTS = {
    'no row': (put_two('action', None, [0, 0, 0, 0]), r'action is list.*1 are missing'),
    'uneven rows': (put_two('action', [0], [0, 0, 0]), r'action is list.*rows of 1 and of 3'),
    'no number': (put('next.done', 3, None), r'next\.done is bool.*1 are missing'),
    'order': (with_rows(reverse_rows), r'frame_index does not count the rows'),
    'times': (
        put('timestamp', 69, 70 / FPS),
        r'timestamp is not frame_index / 10, and so the frames',
    ),
    'fps': (with_info(fps=FPS / 2), r'timestamp is not frame_index / 5'),
    'no fps': (with_info(fps=0), r'fps is 0'),
    'depth map': (
        with_feature(FRONT, info={'video.is_depth_map': True}),
        r'front is a depth map; only images of 8 bits',
    ),
    'depth': (
        put(HAND, 1, as_picture(np.full((10, 12), 999, np.uint16))),
        r'hand holds what is no image in row 1: its values are of more than 8 bits',
    ),
    'sizes': (
        put(HAND, 1, as_picture(np.ones((12, 10, 3), np.uint8))),
        r'hand is \(12, 10, 3\) in row 1, \(10, 12, 3\) before',
    ),
    'paths': (put(HAND, 2, {'bytes': None, 'path': 'a.png'}), r'no encoded image in row 2'),
    'an episode twice': (with_episodes(lambda x: x.append(x[3])), r'listed more than once'),
    'an episode of unknown length': (
        with_episodes(lambda x: x[1].update(length=None)),
        r'length is None, not a number',
    ),
    'episodes': (with_info(total_episodes=5), r'total_episodes is 5 in .*, but 4 in the list'),
    'frames': (with_info(total_frames=99), r'total_frames is 99 in .*, but 85 in the list'),
    'split': (with_info(splits={'train': '0:5'}), r"split '0:5' of 4 episodes"),
    'chunks': (with_info(chunks_size='2', data_path='{}'), "chunks_size is|LeRobot's layout"),
    'no parquet': (
        without('*0.parquet'),
        r'\.parquet: cannot be read: No such file|no meta/episodes',
    ),
    'no video': (without('*0.mp4'), r'\.mp4: cannot be read: No such file'),
    'half a parquet': (
        rewritten('*000.parquet', lambda x: x[: len(x) // 2]),
        r'cannot be read: .*magic',
    ),
    'no video in it': (rewritten('*.mp4', lambda x: b'x' * 99), r'\.mp4: cannot be read'),
    'pointers in place of parquet': (rewritten('*000.parquet', lambda x: LFS), 'is a Git LFS'),
    'pointers in place of videos': (rewritten('*.mp4', lambda x: LFS), r'mp4: .*is a Git LFS'),
    'a pointer in place of meta': (rewritten('info.json', lambda x: LFS), 'json: .*a Git LFS'),
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
        prepared(tmp_path, folder, {'': FRONT, 'hand': HAND})


def test_a_video_of_another_rate(tmp_path, episodes, monkeypatch):
    """Twice the frames in the same time: row i does not show frame i."""
    monkeypatch.setitem(globals(), 'FPS', 2 * FPS)
    folder = write_dataset(tmp_path / 'd', 'v2.1', episodes)
    monkeypatch.undo()
    with_info(fps=FPS)(folder)
    with_rows(lambda columns: columns.update(timestamp=(np.arange(70) / FPS).tolist()))(folder)
    with pytest.raises(DataError, match=r'0\.mp4: has 20 frames a second; .*says 10'):
        prepared(tmp_path, folder, {'': FRONT})


def test_a_video_under_two_names(dataset, episodes, tmp_path):
    seen = prepared(tmp_path, dataset, {'a': FRONT, 'b': FRONT}).splits['train'].observations
    np.testing.assert_array_equal(seen['a'], seen['b'])
    np.testing.assert_array_equal(seen['a'][:70], episodes[0][FRONT])


def test_a_relative_folder_with_a_colon(dataset, tmp_path, monkeypatch):
    """It is no address, neither for pyarrow nor for ffmpeg."""
    shutil.copytree(dataset, tmp_path / 'http:d')
    monkeypatch.chdir(tmp_path)
    assert prepared(tmp_path, Path('http:d')).splits['train'].lengths.tolist() == [71, 5, 10]


def test_damage_that_a_page_checksum_shows(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / 'd')
    path = sorted((folder / 'data').rglob('*.parquet'))[0]
    pq.write_table(pq.read_table(path), path, write_page_checksum=True, compression='none')
    data = bytearray(path.read_bytes())
    place = data.index(np.float64(5 / FPS).tobytes())  # Of timestamp.
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r'\.parquet: cannot be read: .*CRC'):
        prepared(tmp_path, folder, {'': FRONT})


def test_changed_meta_is_another_source(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / 'd')
    before = file_splits(folder, 'd', KEYS)['train'].description['sha256']
    with_info(robot_type='x')(folder)
    assert file_splits(folder, 'd', KEYS)['train'].description['sha256'] != before


def test_splits_go_by_the_numbers_of_episodes(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / 'd')
    with_info(splits={'train': '0:1', 'validation': '1:4', 'test': '0:4'})(folder)
    store = prepared(tmp_path, folder)
    assert store.splits['train'].lengths.tolist() == [71]
    assert store.splits['val'].lengths.tolist() == [5, 10]
    assert 'split test' in ' '.join(store.manifest.sources['train']['notes'])
    assert 'split test' not in ' '.join(store.manifest.sources['val']['notes'])


def test_a_video_that_ends_too_early(tmp_path, episodes):
    short = [dict(episode) for episode in episodes]
    short[0][FRONT] = short[0][FRONT][:-1]
    folder = write_dataset(tmp_path / 'd', 'v2.1', short)
    with pytest.raises(DataError, match=r'episode_000000\.mp4 ends after 69 of its 70 frames'):
        prepared(tmp_path, folder, {'': FRONT})


def test_a_video_is_read_as_it_is_stored(tmp_path, episodes):
    """ffmpeg would turn it by the angle in its metadata."""
    folder = write_dataset(tmp_path / 'd', 'v2.1', episodes)
    for video in folder.rglob('*0.mp4'):
        turned = video.with_name('turned.mp4')
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            '-loglevel',
            'error',
            '-display_rotation',
            '180',
        ]
        subprocess.run([*command, '-i', video, '-c', 'copy', turned], check=True)
        turned.replace(video)
    seen = prepared(tmp_path, folder, {'': FRONT}).splits['train'].observations
    np.testing.assert_array_equal(seen[:70], episodes[0][FRONT])


def test_hidden_files_beside_the_datas_are_not_read(dataset, tmp_path):
    """macOS adds one to each file on disks that do not take its attributes."""
    folder = shutil.copytree(dataset, tmp_path / 'd')
    for path in [path for path in folder.rglob('*') if path.is_file()]:
        path.with_name(f'._{path.name}').write_bytes(b'\0\5\x16\7')
    assert prepared(tmp_path, folder, {'': FRONT}).splits['train'].lengths.tolist() == [71, 5, 10]
