"""The growing store: against plain NumPy, and against accidents."""

import json
import os
import shutil
from operator import itemgetter

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.observations import map_named
from data_pipeline.replay import EXTENT, READ_BYTES, Episodes, Replay, RowLayout
from data_pipeline.replay_store import open_replay, verify_replay
from data_pipeline.sources.replay import replay_splits
from data_pipeline.tfds_builder import export_tfds

LAYOUT = RowLayout((4, 5, 3), 'uint8', 2)
STATES = RowLayout((3,), 'float32', 2)
SEVERAL = RowLayout(
    {'front': (4, 5, 3), 'wrist': (2, 3, 1), 'pose': (3,)},
    {'front': 'uint8', 'wrist': 'uint8', 'pose': 'float32'},
    2,
)


def make_episodes(lengths, layout=LAYOUT, seed=0):
    """Episodes of these numbers of steps: (n + 1 frames, actions, rewards, masks)."""
    rng = np.random.default_rng(seed)
    for length in lengths:
        count = length + 1
        frames = map_named(
            lambda shape, dtype, n=count: rng.integers(0, 256, (n, *shape)).astype(dtype),
            layout.frame_shape,
            layout.frame_dtype,
        )
        yield (
            [map_named(itemgetter(i), frames) for i in range(count)],
            rng.uniform(-1, 1, (length, layout.action_dim)).astype(np.float32),
            rng.normal(size=length).astype(np.float32),
            rng.integers(0, 2, length).astype(np.float32),
        )


def append(stream, episode, steps=None, ends=True):
    frames, actions, rewards, masks = episode
    stream.start(frames[0])
    steps = len(actions) if steps is None else steps
    for i in range(steps):
        last = ends and i == len(actions) - 1
        stream.step(actions[i], rewards[i], masks[i], frames[i + 1], last)


def test_a_replay_reads_as_a_frame_store(tmp_path):
    episodes = list(make_episodes((3, 1, 5, 4)))
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        for episode in episodes[:3]:
            append(replay.streams[0], episode)
        append(replay.streams[0], episodes[3], steps=2, ends=False)
        replay.commit()
        live = open_replay(tmp_path / 'replay').splits['train']
        assert len(live.terminals) == 4 + 2 + 6 + 3
    split = open_replay(tmp_path / 'replay').splits['train']
    frames = [episode[0] for episode in episodes[:3]] + [episodes[3][0][:3]]
    np.testing.assert_array_equal(split.observations, np.concatenate(frames))
    assert split.lengths.tolist() == [4, 2, 6, 3]
    for name, place in (('actions', 1), ('rewards', 2), ('masks', 3)):
        expected = [episode[place] for episode in episodes[:3]] + [episodes[3][place][:2]]
        found = {'actions': split.actions, **split.labels}[name][split.valid_rows]
        np.testing.assert_array_equal(found, np.concatenate(expected))
    assert not split.actions[split.terminals].any()


def test_rows_that_take_several_reads_are_read_whole(tmp_path):
    layout = RowLayout((64, 64, 3), 'uint8', 2)
    (episode,) = make_episodes((READ_BYTES // 64**2 // 3 + 2,), layout)
    with Replay(tmp_path / 'replay', 'env', layout, 1) as replay:
        (stream,) = replay.streams
        append(stream, episode)
        np.testing.assert_array_equal(stream.read_frames(1, stream.rows), episode[0][1:])
        with pytest.raises(DataError, match='ends before row'):
            stream.read('actions', 0, stream.capacity + 1)


@pytest.mark.parametrize('is_cut_off', [False, True])
def test_an_episode_that_ends_in_the_last_row_of_the_room_stays_ended(tmp_path, is_cut_off):
    """Growing the files must not take the newest row for one without columns."""
    episode, other = make_episodes((EXTENT - 1, 3), STATES)
    with Replay(tmp_path / 'replay', 'env', STATES, 1) as replay:
        (stream,) = replay.streams
        append(stream, episode, ends=not is_cut_off)
        if is_cut_off:
            stream.cut_off()
        assert stream.rows == stream.capacity == EXTENT
        append(stream, other, steps=2, ends=False)
        (record,) = replay.commit()
    verify_replay(tmp_path / 'replay')
    with Replay(tmp_path / 'replay', 'env', STATES, 1, [record]) as replay:
        assert replay.streams[0].episodes.ends.tolist() == [EXTENT - 1]
    split = open_replay(tmp_path / 'replay').splits['train']
    assert split.lengths.tolist() == [EXTENT, 3]
    assert split.labels['masks'][EXTENT - 1] == 1


def test_several_arrays_read_as_those_of_a_frame_store(tmp_path):
    (episode,) = make_episodes((4,), SEVERAL)
    with Replay(tmp_path / 'replay', 'env', SEVERAL, 1) as replay:
        append(replay.streams[0], episode)
        newest = replay.streams[0].read_frames(4, 5)
    split = open_replay(tmp_path / 'replay').splits['train']
    assert split.observations.keys() == newest.keys() == SEVERAL.frame_shape.keys()
    for name, array in split.observations.items():
        np.testing.assert_array_equal(array, [frame[name] for frame in episode[0]])
        np.testing.assert_array_equal(newest[name][0], episode[0][4][name])
    assert {path.name for path in (tmp_path / 'replay' / 'train').iterdir()} == {
        *(f'observations.{name}.npy' for name in SEVERAL.frame_shape),
        *(f'{name}.npy' for name in ('actions', 'rewards', 'masks', 'terminals')),
    }


def test_an_episode_that_has_only_begun_is_left_out(tmp_path):
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 2) as replay:
        replay.streams[0].start(np.zeros((4, 5, 3), np.uint8))
        replay.commit()
        with pytest.raises(DataError, match='no transition yet'):
            open_replay(tmp_path / 'replay')
        append(replay.streams[1], next(make_episodes((2,))))
        replay.streams[1].start(np.zeros((4, 5, 3), np.uint8))
        replay.commit()
        assert {n: len(s.terminals) for n, s in open_replay(replay.path).splits.items()} == {
            'train_1': 3
        }


def test_found_transitions_are_those_of_plain_python():
    rng = np.random.default_rng(0)
    for _ in range(50):
        terminals = rng.random(rng.integers(1, 40)) < 0.3
        terminals[0] = False
        terminals[1:] &= ~terminals[:-1]  # Only the unfinished episode may have one row.
        rows = len(terminals)
        plain = []
        first = 0
        for row in range(rows):
            if terminals[row]:
                first = row + 1
            elif row + 1 < rows:
                later = np.flatnonzero(terminals[row:])
                plain.append((row, first, row + later[0] if len(later) else rows - 1))
        episodes = Episodes(np.flatnonzero(terminals), rows)
        assert episodes.transitions == len(plain)
        found = episodes.find(np.arange(len(plain)))
        assert list(zip(*(part.tolist() for part in found), strict=True)) == plain


def snapshot(folder):
    """The relevant contents of a closed replay."""
    store = open_replay(folder)
    return {
        (name, key): np.array(array)
        for name, split in store.splits.items()
        for key, array in split.arrays.items()
    }


@pytest.mark.parametrize('layout', [LAYOUT, STATES, SEVERAL])
def test_a_replay_cut_at_a_checkpoint_goes_on_as_if_nothing_had_been(tmp_path, layout):
    episodes = list(make_episodes((3, 4, 6, 2), layout))
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    with Replay(whole, 'env', layout, 1) as replay:
        for episode in episodes:
            append(replay.streams[0], episode)
        replay.streams[0].start(episodes[0][0][0])
        end = replay.commit()
    with Replay(broken, 'env', layout, 1) as replay:
        append(replay.streams[0], episodes[0])
        append(replay.streams[0], episodes[1], steps=2, ends=False)
        records = json.loads(json.dumps(replay.commit()))
        # Other steps, other episodes and larger files, which are lost.
        for episode in make_episodes((1,) * 5, layout, seed=9):
            replay.streams[0].step(np.ones(2, np.float32), 1.0, 0.0, episode[0][1], True)
            replay.streams[0].start(episode[0][0])
        replay.commit()
    with Replay(broken, 'env', layout, 1, records) as replay:
        stream = replay.streams[0]
        assert stream.episodes.ends.tolist() == [3]
        assert not stream.read('actions', 6, 7).any()
        frames, actions, rewards, masks = episodes[1]
        for i in (2, 3):
            stream.step(actions[i], rewards[i], masks[i], frames[i + 1], i == 3)
        for episode in episodes[2:]:
            append(stream, episode)
        stream.start(episodes[0][0][0])
        assert replay.commit() == end
    for key, array in snapshot(whole).items():
        np.testing.assert_array_equal(snapshot(broken)[key], array)


def test_growth_beyond_the_room_that_was_made(tmp_path):
    layout = RowLayout((1,), 'float32', 1)
    action = np.zeros(1, np.float32)
    with Replay(tmp_path / 'replay', 'env', layout, 1) as replay:
        stream = replay.streams[0]
        stream.start(np.zeros(1, np.float32))
        for i in range(1, EXTENT + 10):
            stream.step(action, i, 1.0, np.full(1, i, np.float32), False)
        assert replay.capacity == 2 * EXTENT
        records = replay.commit()
    split = open_replay(tmp_path / 'replay').splits['train']
    np.testing.assert_array_equal(split.observations[:, 0], np.arange(EXTENT + 10))
    assert (tmp_path / 'replay/train/observations.npy').stat().st_size < 4 * (EXTENT + 10) + 1000
    with Replay(tmp_path / 'replay', 'env', layout, 1, records) as replay:
        assert replay.streams[0].rows == EXTENT + 10


def test_damage_is_found(tmp_path):
    folder = tmp_path / 'replay'
    with Replay(folder, 'env', LAYOUT, 1) as replay:
        append(replay.streams[0], next(make_episodes((5,))))
        replay.streams[0].start(np.zeros((4, 5, 3), np.uint8))
        records = replay.commit()

    def reopen(path):
        with Replay(path, 'env', LAYOUT, 1, records):
            pass

    reopen(folder)
    for name in ('observations', 'actions', 'rewards', 'masks', 'terminals'):
        damaged = tmp_path / 'damaged'
        shutil.copytree(folder, damaged, dirs_exist_ok=True)
        path = damaged / 'train' / f'{name}.npy'
        data = bytearray(path.read_bytes())
        data[130] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=f'{name}.*not what was written'):
            reopen(damaged)
        path.unlink()
        with pytest.raises(DataError, match=f'{name}.*cannot be read'):
            reopen(damaged)
    os.rename(folder, tmp_path / 'elsewhere')
    with pytest.raises(DataError, match='missing'):
        reopen(folder)


def test_a_disk_that_is_full_in_the_middle_of_an_append(small_disk):
    layout = RowLayout((64, 64, 3), 'uint8', 2)
    (frames, actions, rewards, masks) = next(make_episodes((20,), layout))
    written = []

    def fill():
        with Replay(small_disk / 'replay', 'env', layout, 1) as replay:
            stream = replay.streams[0]
            stream.start(frames[0])
            while True:
                written.append((stream.rows, stream.record))
                i = stream.rows % 20
                try:
                    stream.step(actions[i], rewards[i], masks[i], frames[i], False)
                except DataError:
                    assert (stream.rows, stream.record) == written[-1]
                    raise

    with pytest.raises(DataError, match='No space left'):
        fill()
    rows, record = written[-1]
    assert rows > 1_000
    with Replay(small_disk / 'replay', 'env', layout, 1, [record]) as replay:
        assert replay.streams[0].episodes.transitions == rows - 1


def test_an_episode_that_is_cut_off(tmp_path):
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        stream = replay.streams[0]
        episode = next(make_episodes((3,)))
        append(stream, episode, steps=2, ends=False)
        stream.cut_off()
        stream.start(episode[0][3])
        stream.cut_off()  # An episode of one row, which is removed.
        append(stream, episode)
        stream.start(episode[0][0])
        records = replay.commit()
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1, records) as replay:
        assert replay.streams[0].episodes.ends.tolist() == [2, 6]


def test_a_replay_cut_at_a_checkpoint_is_read_as_of_it(tmp_path):
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        first, second = make_episodes((3, 4))
        append(replay.streams[0], first)
        replay.streams[0].start(second[0][0])
        records = replay.commit()
        replay.streams[0].cut_off()
        append(replay.streams[0], second)
        replay.streams[0].start(first[0][0])
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1, records) as replay:
        verify_replay(replay.path)
        assert open_replay(replay.path).splits['train'].lengths.tolist() == [4]


def test_a_checkpoint_does_not_count_on_a_row_that_is_removed(tmp_path):
    """A kill after the newest row was removed, and overwritten by another first observation."""
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        stream = replay.streams[0]
        first, other = make_episodes((3, 3))
        append(stream, first)
        stream.start(first[0][0])
        records = replay.commit()
        stream.cut_off()
        stream.start(other[0][0])
        verify_replay(replay.path)
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1, records) as replay:
        stream = replay.streams[0]
        assert (stream.rows, stream.episodes.ends.tolist()) == (5, [3])
        np.testing.assert_array_equal(stream.read_frames(4, 5)[0], other[0][0])


@pytest.mark.parametrize(
    ('layout', 'name'),
    [
        *((LAYOUT, name) for name in ('observations', 'actions', 'rewards', 'masks', 'terminals')),
        *((SEVERAL, f'observations.{name}') for name in ('front', 'pose')),
    ],
)
def test_no_store_is_made_of_a_damaged_replay(tmp_path, layout, name):
    with Replay(tmp_path / 'replay', 'env', layout, 2) as replay:
        episodes = list(make_episodes((5, 3), layout))
        for stream, episode in zip(replay.streams, episodes, strict=True):
            append(stream, episode)
        replay.streams[0].start(episodes[1][0][0])
    verify_replay(tmp_path / 'replay')
    path = tmp_path / 'replay' / 'train_1' / f'{name}.npy'
    data = bytearray(path.read_bytes())
    data[130] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf'the 4 rows of train_1/{name}\.npy are not what was'):
        replay_splits(tmp_path / 'replay')


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (('streams', 'train', 'rows'), 10**9),
        (('streams', 'train', 'rows'), -1),
        (('streams', 'train', 'crc32'), {}),
        (('layout', 'frame_dtype'), 'colour'),
        (('layout', 'frame_dtype'), ''),
        (('layout', 'frame_shape'), [4, 5]),
        (('layout', 'frame_shape'), [10**30]),
        (('layout', 'frame_shape'), [0]),
        (('layout', 'frame_dtype'), {'front': 'uint8'}),
        (('layout', 'latents'), [3, 'x']),
        (('streams',), {'../elsewhere': {'rows': 4, 'crc32': {}}}),
    ],
)
def test_a_record_that_is_not_that_of_its_files(tmp_path, place, value):
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        append(replay.streams[0], next(make_episodes((5,))))
        replay.streams[0].start(np.zeros((4, 5, 3), np.uint8))
    path = tmp_path / 'replay' / 'replay.json'
    values = json.loads(path.read_text())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r'replay: ') as caught:
        replay_splits(tmp_path / 'replay')
    assert '\n' not in str(caught.value)


def test_replays_of_two_runs_can_be_exported_to_one_folder(tmp_path):
    folders = []
    for run in ('a', 'b', '.hidden'):  # The last cannot be the name of a dataset.
        with Replay(tmp_path / run / 'replay', 'env', LAYOUT, 1) as replay:
            append(replay.streams[0], next(make_episodes((5,))))
        folders.append(export_tfds(open_replay(tmp_path / run / 'replay'), tmp_path / 'tfds'))
    names = [folder.relative_to(tmp_path / 'tfds').parts[1] for folder in folders]
    assert names == ['a-replay', 'b-replay', 'replay']


def test_names_lead_to_no_other_folder(tmp_path):
    with Replay(tmp_path / 'replay', 'env', SEVERAL, 1) as replay:
        append(replay.streams[0], next(make_episodes((5,), SEVERAL)))
    path = tmp_path / 'replay' / 'replay.json'
    path.write_text(path.read_text().replace('wrist', '../x'))
    with pytest.raises(DataError, match=r"damaged replay: '\.\./x' is not a valid name"):
        open_replay(tmp_path / 'replay')


@pytest.mark.parametrize('rows', [EXTENT, 7])
def test_a_kill_between_the_length_of_a_file_and_its_header(tmp_path, rows):
    """Growing and cutting may leave a header that counts more rows than the file has."""
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1) as replay:
        append(replay.streams[0], next(make_episodes((5,))))
        replay.streams[0].start(np.zeros((4, 5, 3), np.uint8))
        records = replay.commit()
        replay.streams[0].sync()
        path = tmp_path / 'replay' / 'train' / 'observations.npy'
        killed = path.read_bytes()
    start = len(killed) - EXTENT * 60
    path.write_bytes(killed[: start + rows * 60])
    with Replay(tmp_path / 'replay', 'env', LAYOUT, 1, records) as replay:
        assert replay.streams[0].episodes.transitions == 5
