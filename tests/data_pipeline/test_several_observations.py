"""Observations of several arrays, from a file to batches, against plain NumPy."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DamagedError, DataError
from data_pipeline.loader import LoaderConfig, check_windows, make_batches
from data_pipeline.observations import observation_keys
from data_pipeline.sources.files import file_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.verification import verify
from data_pipeline.store.writer import write_store
from data_pipeline.tfds_builder import export_tfds

LENGTHS = (2, 3, 7, 2, 9)
KEYS = observation_keys(['cameras/main', 'hand=wrist', 'state'])
PAD = 3


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
    config = LoaderConfig(**{'batch_size': 8, 'shift_pad': PAD, **settings})  # type: ignore
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
        assert batch['frames'].keys() == batch['shifts'].keys() == expected.keys()
        for place, row in enumerate(batch['indices']):
            number = np.searchsorted(last, row)
            first = last[number - 1] + 1 if number else 0
            now = [max(row + offset, first) for offset in range(1 - stack, 1)]
            later = [
                min(max(row + horizon + offset, first), last[number])
                for offset in range(1 - stack, 1)
            ]
            for name, array in expected.items():
                frames, shift = batch['frames'][name][place], batch['shifts'][name][place]
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
        np.testing.assert_array_equal(batch['frames']['hand'], alone['frames'])
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
        for field in ('frames', 'shifts'):
            np.testing.assert_array_equal(late[field][name], whole[4][field][name])
            joined = np.concatenate([part[field][name] for part in parts])
            np.testing.assert_array_equal(joined, whole[4][field][name])


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
    with pytest.raises(DataError, match=r'lacks what follows observations\.wrist'):
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
    for words, fault in (
        (['a/x', 'b/x'], "two observations are called 'x'"),
        (['=x'], "''"),
        (['x', 'a/'], "''"),
        (['n' * 190 + '=x'], r'observations\.n.* of at most 200 bytes'),  # Of the store's array.
    ):
        with pytest.raises(DataError, match=fault):
            observation_keys(words)
    with pytest.raises(DataError, match=r"no observation 'waist'; it holds actions, .*wrist"):
        prepared(tmp_path, arrays, {'waist': 'waist'})
    store = prepared(tmp_path, arrays)
    with pytest.raises(DataError, match='pass --overwrite'):
        prepared(tmp_path, arrays, {'hand': 'wrist', 'state': 'state'})
    with pytest.raises(DataError, match='of one observation array'):
        export_tfds(store, tmp_path / 'tfds')
    with pytest.raises(DataError, match=r'several arrays .*hand, main, state'):
        check_windows(store.splits['train'], LoaderConfig(4))
    (tmp_path / 'low').mkdir()
    low = {**arrays, 'cameras/main': arrays['cameras/main'][:, :3]}
    store = prepared(tmp_path / 'low', low)
    with pytest.raises(DataError, match=r'shift_pad 3 for images of \(3, 9, 3\)'):
        take(store, 1)
