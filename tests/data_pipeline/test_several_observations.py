"""Observations of several arrays, from a file to batches, against plain NumPy."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DamagedError, DataError
from data_pipeline.loader import LoaderConfig, check_windows, make_batches, make_windows
from data_pipeline.observations import observation_keys
from data_pipeline.online_loader import OnlineBatches
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.sample_layout import SHIFT_PAD as PAD
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.sources.rlds import RldsKeys, rlds_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.verification import verify
from data_pipeline.store.writer import write_store
from data_pipeline.tfds_builder import export_tfds

LENGTHS = (2, 3, 7, 2, 9)
KEYS = observation_keys(['cameras/main', 'hand=wrist', 'state'])


@pytest.fixture
def arrays(make_arrays) -> dict[str, np.ndarray]:
    """Two cameras of different sizes and channels, and proprioception."""
    rng = np.random.default_rng(1)
    arrays = make_arrays(LENGTHS)
    rows = len(arrays.pop('observations'))
    return {
        **arrays,
        'cameras/main': rng.integers(0, 256, (rows, 12, 9, 3), np.uint8),
        'wrist': rng.integers(0, 256, (rows, 7, 8), np.uint8),
        'state': rng.normal(size=(rows, 5)),
        'depth': rng.normal(size=(rows, 4, 4)),
    }


def stored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays expected in a store, by the names of `KEYS`."""
    return {
        'main': arrays['cameras/main'],
        'hand': arrays['wrist'][..., None],
        'state': np.float32(arrays['state']),
    }


def prepared(
    folder: Path, arrays: dict[str, np.ndarray], keys: dict[str, str] = KEYS
) -> FrameStore:
    np.savez(folder / 'd.npz', **arrays)
    return write_store(folder / 'store', 'd', file_splits(folder / 'd.npz', 'd', keys))


def take(store: FrameStore, count: int, start: int = 0, **settings: object) -> list[dict]:
    split = store.splits['train']
    numbers = np.arange(len(split.terminals), dtype=np.float32)
    config = LoaderConfig(**{'batch_size': 8, **settings})  # type: ignore
    return list(itertools.islice(make_batches(split, numbers, numbers, config, start), count))


def shifted(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A frame (h, w, c), edge-padded and cut out."""
    (top, left), (height, width, _) = shift, frame.shape
    padded = np.pad(frame, ((PAD, PAD), (PAD, PAD), (0, 0)), mode='edge')
    return padded[top : top + height, left : left + width]


def test_the_store_holds_each_array(arrays, tmp_path):
    store = prepared(tmp_path, arrays)
    split = store.splits['train']
    assert list(split.observations) == ['hand', 'main', 'state']
    for name, expected in stored(arrays).items():
        file = np.load(tmp_path / 'store' / 'train' / f'observations.{name}.npy')
        assert file.dtype == expected.dtype
        np.testing.assert_array_equal(file, expected)
        np.testing.assert_array_equal(split.observations[name], expected)
    source = json.loads((tmp_path / 'store' / 'manifest.json').read_text())['sources']['train']
    assert source['keys']['observation'] == KEYS
    notes = ' '.join(source['notes'])
    assert 'observations.hand are grey images (7, 8)' in notes
    assert 'ignored: depth' in notes


@pytest.mark.parametrize('name', ['main', 'hand', 'state'])
def test_one_bit_of_any_array_is_found(arrays, tmp_path, name):
    store = prepared(tmp_path, arrays)
    path = tmp_path / 'store' / 'train' / f'observations.{name}.npy'
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=rf'observations\.{name}\.npy is not what was written'):
        verify(store.path, open_store(store.path).stored_arrays, lambda *_: None)


@pytest.mark.parametrize(('stack', 'horizon'), [(1, 1), (3, 1), (2, 4)])
def test_batches_are_what_they_say(arrays, tmp_path, stack, horizon):
    expected = stored(arrays)
    last = np.flatnonzero(arrays['terminals'])
    for batch in take(prepared(tmp_path, arrays), 8, frame_stack=stack, horizon=horizon, seed=2):
        assert batch['inputs'].keys() == batch['shifts'].keys() == expected.keys()
        for place, row in enumerate(batch['indices']):
            number = np.searchsorted(last, row)
            first = last[number - 1] + 1 if number else 0
            now = [max(row + offset, first) for offset in range(1 - stack, 1)]
            later = [
                min(max(row + horizon + offset, first), last[number])
                for offset in range(1 - stack, 1)
            ]
            for name, array in expected.items():
                frames, shift = batch['inputs'][name][place], batch['shifts'][name][place]
                if array.ndim == 4:
                    wanted = [[shifted(array[r], shift) for r in rows] for rows in (now, later)]
                else:
                    wanted = [array[now], array[later]]
                    assert shift.tolist() == [PAD, PAD]
                np.testing.assert_array_equal(frames[:stack], wanted[0])
                np.testing.assert_array_equal(frames[-stack:], wanted[1])


def test_draws_are_those_of_a_single_image(arrays, tmp_path):
    """Rows, and the offsets of the first image; the others have different offsets."""
    (tmp_path / 'one').mkdir()
    several = take(prepared(tmp_path, arrays), 6, frame_stack=2, shift_probability=1)
    single = take(
        prepared(tmp_path / 'one', arrays, {'': 'wrist'}), 6, frame_stack=2, shift_probability=1
    )
    for batch, alone in zip(several, single, strict=True):
        for name in ('indices', 'actions', 'rewards'):
            np.testing.assert_array_equal(batch[name], alone[name])
        np.testing.assert_array_equal(batch['shifts']['hand'], alone['shifts'])
        np.testing.assert_array_equal(batch['inputs']['hand'], alone['inputs'])
        assert (batch['shifts']['main'] != batch['shifts']['hand']).any()
    assert {path.name for path in (tmp_path / 'one' / 'store' / 'train').iterdir()} == {
        f'{name}.npy' for name in ('observations', 'actions', 'terminals', 'qpos', 'qvel')
    }


def test_batch_n_is_the_same_from_any_start_and_in_parts(arrays, tmp_path):
    store = prepared(tmp_path, arrays)
    whole = take(store, 5, shift_probability=1)
    (late,) = take(store, 1, start=4, shift_probability=1)
    parts = [
        take(store, 5, shift_probability=1, process_index=i, process_count=2)[4] for i in range(2)
    ]
    for name in ('main', 'hand', 'state'):
        for field in ('inputs', 'shifts'):
            np.testing.assert_array_equal(late[field][name], whole[4][field][name])
            joined = np.concatenate([part[field][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[4][field][name])


def test_an_exported_dataset_is_the_same_again(arrays, tmp_path):
    rows = len(arrays['state'])
    store = prepared(
        tmp_path, {**arrays, 'rewards': np.arange(rows), 'masks': np.arange(rows) % 3 > 0}
    )
    split = store.splits['train']
    folder = export_tfds(store, tmp_path / 'tfds')
    steps = json.loads((folder / 'features.json').read_text())
    assert all(f'"{name}"' in json.dumps(steps) for name in KEYS)
    keys = RldsKeys({name: f'observation/{name}' for name in KEYS}, reward='reward')
    again = write_store(tmp_path / 'again', 'd', rlds_splits(str(folder), keys)).splits['train']
    assert again.arrays.keys() == split.arrays.keys()
    np.testing.assert_array_equal(again.terminals, split.terminals)
    for name, array in split.arrays.items():
        used = ~split.terminals if name in ('actions', 'rewards', 'masks') else slice(None)
        np.testing.assert_array_equal(again.arrays[name][used], array[used], err_msg=name)


def test_windows_of_each_array(arrays, tmp_path):
    """Each stack is of its rows and shifted as it says, the two stacks and all cameras apart."""
    arrays['top'] = arrays['wrist'][..., None]
    split = prepared(tmp_path, arrays, {**KEYS, 'top': 'top'}).splits['train']
    config = LoaderConfig(8, frame_stack=2, horizon=3, shift_probability=1)
    last = np.flatnonzero(split.terminals)
    for batch in itertools.islice(make_windows(split, config), 4):
        starts = batch['indices']
        for prefix, rows in (('', starts), ('later_', starts + batch['offsets'])):
            for place, row in enumerate(rows):
                number = np.searchsorted(last, starts[place])
                first = last[number - 1] + 1 if number else 0
                assert row <= last[number]
                for name, array in split.observations.items():
                    wanted = array[[max(row - 1, first), row]]
                    if array.ndim == 4:
                        shift = batch[f'{prefix}shifts'][name][place]
                        wanted = [shifted(frame, shift) for frame in wanted]
                    np.testing.assert_array_equal(batch[f'{prefix}frames'][name][place], wanted)
        drawn = {
            batch[field][name].tobytes()
            for field in ('shifts', 'later_shifts')
            for name in ('hand', 'main', 'top')
        }
        assert len(drawn) == 6


@pytest.mark.parametrize('share', [None, 0.25])
def test_batches_of_data_and_replay(arrays, tmp_path, share):
    """Each array of a sample is of its row, of the data or of the replay, shifted as it says."""
    split = prepared(tmp_path, arrays).splits['train']
    rng = np.random.default_rng(3)
    held = [{name: np.array(array) for name, array in split.observations.items()}]
    held.append({name: array[::-1].copy() for name, array in held[0].items()})
    types = {name: str(array.dtype) for name, array in held[1].items()}
    layout = RowLayout({name: array.shape[1:] for name, array in held[1].items()}, types, 4)
    numbers = np.arange(len(split.terminals), dtype=np.float32)
    config = LoaderConfig(batch_size=8, frame_stack=2)
    seen = set()
    with (
        Replay(tmp_path / 'replay', 'env', layout, 1) as replay,
        OnlineBatches(split, numbers, numbers, replay, share, config) as batches,
    ):
        frames = [{name: array[i] for name, array in held[1].items()} for i in range(8)]
        replay.streams[0].start(frames[0])
        for i in range(1, 6):
            replay.streams[0].step(rng.uniform(-1, 1, 4), i, 1.0, frames[i], i == 5)
        replay.streams[0].start(frames[6])
        replay.streams[0].step(rng.uniform(-1, 1, 4), 0.0, 1.0, frames[7], False)
        last = [np.flatnonzero(split.terminals), np.array([5, 7])]
        batches.ask(range(6))
        for _ in range(6):
            _, batch = batches.take()
            assert batch['inputs'].keys() == batch['shifts'].keys() == held[0].keys()
            for place, (source, row) in enumerate(
                zip(batch['sources'], batch['indices'], strict=True)
            ):
                number = np.searchsorted(last[source], row)
                first = last[source][number - 1] + 1 if number else 0
                for name, array in held[source].items():
                    wanted = array[[max(row - 1, first), row, row + 1]]
                    shift = batch['shifts'][name][place]
                    if array.ndim == 4:
                        wanted = [shifted(frame, shift) for frame in wanted]
                    np.testing.assert_array_equal(batch['inputs'][name][place], wanted)
                seen.add((int(source), bool((batch['shifts']['hand'][place] != PAD).any())))
            assert (batch['shifts']['state'] == PAD).all()
    assert seen == {(0, False), (0, True), (1, False), (1, True)}


def test_stored_following_observations(arrays, tmp_path):
    """Every row a transition, as with one array: trajectories end where any array jumps."""
    rows = len(arrays['state'])
    del arrays['terminals']
    state = np.random.default_rng(2).normal(size=(rows + 3, 2))
    arrays |= {
        'state': state[:rows],
        'next_state': state[1 : rows + 1].copy(),
        'next_wrist': np.roll(arrays['wrist'], -1, axis=0),
        'terminals': np.zeros(rows, bool),
        'rewards': np.arange(rows),
        'masks': np.ones(rows),
    }
    arrays['next_state'][4], arrays['next_wrist'][9] = 7, 1
    store = prepared(tmp_path, arrays, observation_keys(['state', 'wrist']))
    split = store.splits['train']
    starts, seen = split.valid_rows, split.observations
    assert split.lengths.tolist() == [6, 6, rows - 10 + 1]
    np.testing.assert_array_equal(seen['state'][starts], np.float32(arrays['state']))
    np.testing.assert_array_equal(seen['state'][starts + 1], np.float32(arrays['next_state']))
    np.testing.assert_array_equal(seen['wrist'][starts + 1][..., 0], arrays['next_wrist'])
    del arrays['next_wrist']
    with pytest.raises(DataError, match=r'but not of observations\.wrist'):
        prepared(tmp_path, arrays, observation_keys(['state', 'wrist']))


FAULTS = {
    'NaN': ('state', lambda x: x * np.nan, r'observations\.state holds values that are not finite'),
    'short': ('wrist', lambda x: x[1:], r'arrays differ in length: .*observations\.hand'),
    'float images': ('wrist', lambda x: x / 255, r'observations\.hand is float64 .* must be uint8'),
    'black': ('cameras/main', lambda x: x * 0, r'are zero in observations\.main, .*render them'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_wrong_arrays_are_refused(arrays, tmp_path, fault):
    name, change, message = FAULTS[fault]
    arrays[name] = change(arrays[name])
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, arrays)
    assert not (tmp_path / 'store').exists()


def test_keys(arrays, tmp_path):
    assert observation_keys([]) == {}
    assert observation_keys(['obs/front']) == {'': 'obs/front'}
    assert observation_keys(['eye=obs/front']) == {'eye': 'obs/front'}
    assert observation_keys(['obs/front', 'x']) == {'front': 'obs/front', 'x': 'x'}
    assert observation_keys(['x=a=b']) == {'x': 'a=b'}
    for arguments, fault in (
        (['a/x', 'b/x'], "two observations are called 'x'"),
        (['=x'], "''"),
        (['x', 'a/'], "''"),
        (['n' * 190 + '=x'], r'observations\.n.* of at most 200 bytes'),  # Of the store's array.
    ):
        with pytest.raises(DataError, match=fault):
            observation_keys(arguments)
    with pytest.raises(DataError, match=r"no observation 'waist'; it holds actions, .*wrist"):
        prepared(tmp_path, arrays, {'waist': 'waist'})
    store = prepared(tmp_path, arrays)
    with pytest.raises(DataError, match='replace it with --overwrite'):
        prepared(tmp_path, arrays, {'hand': 'wrist', 'state': 'state'})
    (tmp_path / 'low').mkdir()
    low = {**arrays, 'cameras/main': arrays['cameras/main'][:, :3]}
    store = prepared(tmp_path / 'low', low)
    with pytest.raises(DataError, match=r'images \(3, 9, 3\) are too small to be shifted by 3'):
        take(store, 1)
    (tmp_path / 'blind').mkdir()
    store = prepared(tmp_path / 'blind', arrays, {'state': 'state', 'other': 'state'})
    with pytest.raises(DataError, match='observations are vectors, but images are needed'):
        check_windows(store.splits['train'], LoaderConfig(4))
