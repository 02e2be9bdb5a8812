"""Actions of other ranges than [-1, 1], scaled on the way to the store and back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline.action_range import ActionRange, action_range_from_json
from data_pipeline.errors import DataError
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.replay_store import open_replay
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.sources.normalization import normalize_actions
from data_pipeline.sources.replay import replay_splits
from data_pipeline.sources.rlds import RldsKeys, rlds_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.writer import write_store
from data_pipeline.tfds_builder import export_tfds

LOW, HIGH = np.array([-3, 10, 0.25, -2e-3]), np.array([5, 20, 0.5, 4e-3])


@pytest.fixture
def arrays(make_arrays) -> dict[str, np.ndarray]:
    arrays = make_arrays((4, 30, 6))
    arrays['actions'] = np.random.default_rng(0).uniform(LOW, HIGH, (40, 4))
    arrays['actions'][7], arrays['actions'][12] = LOW, HIGH
    return arrays


def prepared(tmp_path: Path, arrays: dict[str, np.ndarray], val=None) -> FrameStore:
    np.savez(tmp_path / 'd.npz', **arrays)
    if val is not None:
        np.savez(tmp_path / 'd-val.npz', **val)
    splits = normalize_actions(file_splits(tmp_path / 'd.npz', 'd'))
    return write_store(tmp_path / 'store', 'd', splits)


def range_of(store: FrameStore) -> ActionRange:
    found = action_range_from_json(store.manifest.sources['train']['action_range'])
    assert found is not None
    return found


def test_there_and_back(tmp_path, arrays):
    store = prepared(tmp_path, arrays)
    stored, starts = store.splits['train'].actions, store.splits['train'].valid_rows
    expected = (arrays['actions'] - LOW) / (HIGH - LOW) * 2 - 1
    np.testing.assert_allclose(stored[starts], expected[starts], rtol=0, atol=1e-6)
    assert stored[7].tolist() == [-1] * 4
    assert stored[12].tolist() == [1] * 4
    scale = range_of(store)
    assert scale == ActionRange(tuple(LOW.tolist()), tuple(HIGH.tolist()))
    back = scale.from_unit(stored[starts])
    assert np.all(np.abs(back - arrays['actions'][starts]) <= 1e-6 * (HIGH - LOW))
    assert 'from [-3, 5], [10, 20]' in store.manifest.sources['train']['notes'][0]


def test_actions_that_lead_nowhere_do_not_count(tmp_path, arrays):
    arrays['actions'][[3, 33, 39]] = [[np.nan] * 4, [1e9] * 4, [0] * 4]
    store = prepared(tmp_path, arrays)
    assert range_of(store).high == tuple(HIGH.tolist())
    assert np.abs(store.splits['train'].actions).max() <= 1


def test_all_splits_have_one_range(tmp_path, arrays, make_arrays):
    val = make_arrays((5,))
    val['actions'] = np.full((5, 4), 15.0)
    store = prepared(tmp_path, arrays, val)
    assert range_of(store).high == (15, 20, 15, 15)
    assert store.splits['val'].actions[0].tolist() == [1, 0, 1, 1]
    assert store.manifest.sources['val']['action_range']['low'] == LOW.tolist()


def test_a_dimension_of_one_value(tmp_path, arrays):
    arrays['actions'][:, 2] = 7
    store = prepared(tmp_path, arrays)
    assert not store.splits['train'].actions[:, 2].any()
    assert range_of(store).from_unit(np.array([0.3, 0, 0.9, 0]))[2] == 7


def test_a_damaged_range_is_refused(tmp_path, arrays):
    store = prepared(tmp_path, arrays)
    path = store.path / 'manifest.json'
    whole = json.loads(path.read_text())
    for name, value in (
        ('action_range', {'low': [0], 'high': [-1]}),
        ('action_range', {'low': [0, 1], 'high': [1]}),
        ('action_range', {'low': ['a'], 'high': [1]}),
        ('action_range', 3),
        ('notes', 3),
        ('notes', [3]),
    ):
        changed = {**whole['sources']['train'], name: value}
        path.write_text(json.dumps({**whole, 'sources': {'train': changed}}))
        with pytest.raises(DataError, match='damaged frame store'):
            open_store(store.path)


def test_what_is_not_finite_is_refused(tmp_path, arrays):
    arrays['actions'][9, 1] = np.inf
    with pytest.raises(DataError, match='not finite, first in row 9'):
        prepared(tmp_path, arrays)


def test_demonstrations(tmp_path):
    """A demonstration's actions come after the frames of the demonstrations before it."""
    rng = np.random.default_rng(0)
    actions = [rng.uniform(LOW, HIGH, (steps, 4)) for steps in (3, 5, 4)]
    with h5py.File(tmp_path / 'demos.hdf5', 'w') as file:
        for i, array in enumerate(actions):
            file[f'data/demo_{i}/actions'] = array
            states = rng.normal(size=(len(array) + 1, 2))
            file[f'data/demo_{i}/obs/state'] = states[:-1]
            file[f'data/demo_{i}/next_obs/state'] = states[1:]
    splits = normalize_actions(file_splits(tmp_path / 'demos.hdf5', 'd'))
    store = write_store(tmp_path / 'store', 'd', splits)
    flat = np.concatenate(actions)
    assert range_of(store).low == tuple(flat.min(axis=0).tolist())
    split = store.splits['train']
    back = range_of(store).from_unit(split.actions[split.valid_rows])
    np.testing.assert_allclose(back, flat, rtol=0, atol=1e-5)


@pytest.fixture
def fill_replay():
    """fill_replay(path, steps, ...): a replay of two environments, of an episode and a half each.

    Returns the actions that were taken.
    """

    def fill(path: Path, steps: int, high: float = 1, **arguments: Any) -> np.ndarray:
        rng = np.random.default_rng(0)
        actions = rng.uniform(-high, high, (2, 2 * steps, 2)).astype(np.float32)
        actions[0, :2] = [[-high], [high]]
        with Replay(path, 'env', RowLayout((3,), 'float32', 2), 2, **arguments) as replay:
            for stream, taken in zip(replay.streams, actions, strict=True):
                stream.start(np.zeros(3, np.float32))
                for step, action in enumerate(taken):
                    stream.step(action, 0.0, 1.0, np.ones(3, np.float32), step == steps)
                    if step == steps:
                        stream.start(np.zeros(3, np.float32))
        return actions.reshape(-1, 2)

    return fill


@pytest.mark.parametrize('steps', [3, 1_500])
def test_the_actions_of_a_replay(tmp_path, fill_replay, steps):
    """Those of every block are scaled, and those that lead nowhere do not count."""
    taken = fill_replay(tmp_path / 'replay', steps, high=0.25)
    splits = normalize_actions(replay_splits(tmp_path / 'replay'))
    store = write_store(tmp_path / 'store', 'd', splits)
    assert range_of(store) == ActionRange(
        tuple(taken.min(axis=0).tolist()), tuple(taken.max(axis=0).tolist())
    )
    split = store.splits['train']
    back = range_of(store).from_unit(split.actions[split.valid_rows])
    np.testing.assert_allclose(back, taken, rtol=0, atol=1e-6)


def test_the_range_goes_through_a_replay(tmp_path, fill_replay):
    """Opened again as of a checkpoint, and made a store of."""
    scale = ActionRange((-3.0, 0.1), (5.0, 0.3))
    fill_replay(tmp_path / 'replay', 3, action_range=scale)
    assert range_of(open_replay(tmp_path / 'replay')) == scale
    splits = replay_splits(tmp_path / 'replay')
    assert range_of(write_store(tmp_path / 'store', 'd', splits)) == scale
    with pytest.raises(DataError, match=r'scaled already.*leave out --normalize-actions'):
        normalize_actions(splits)


def test_a_replays_range_is_checked(tmp_path, fill_replay):
    fill_replay(tmp_path / 'replay', 3, action_range=ActionRange((-3.0,), (5.0,)))
    with pytest.raises(DataError, match='damaged replay: a range of 1 actions, of 2'):
        open_replay(tmp_path / 'replay')


@pytest.mark.parametrize('source', ['file', 'replay'])
def test_an_export_has_the_users_units(tmp_path, arrays, fill_replay, source):
    """What reads an RLDS dataset knows no range; prepared again, the data are the same."""
    if source == 'file':
        store = prepared(tmp_path, arrays)
        split = store.splits['train']
        expected = arrays['actions'][split.valid_rows]
    else:
        scale = ActionRange((-3.0, 0.1), (5.0, 0.3))
        expected = scale.from_unit(fill_replay(tmp_path / 'replay', 3, action_range=scale))
        store = open_replay(tmp_path / 'replay')
    folder = export_tfds(store, tmp_path / 'tfds')
    steps = [
        step
        for episode in tfds.builder_from_directory(folder).as_data_source('train')
        for step in episode['steps']
    ]
    found = np.array([step['action'] for step in steps if not step['is_last']])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    again = write_store(
        tmp_path / 'again', 'd', normalize_actions(rlds_splits(str(folder), RldsKeys()))
    )
    back = range_of(again).from_unit(again.splits['train'].actions)
    is_start = ~again.splits['train'].terminals
    np.testing.assert_allclose(back[is_start], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('names', [('actions', 'terminals'), ('terminals', 'actions')])
def test_actions_whose_ends_are_not_known_are_refused(tmp_path, arrays, names):
    """A source that gives them too late, or has fewer."""
    np.savez(tmp_path / 'd.npz', **arrays)
    source = file_splits(tmp_path / 'd.npz', 'd')['train']
    blocks = {'actions': arrays['actions'], 'terminals': arrays['terminals'][:-1]}
    late = dataclasses.replace(source, read=lambda note: iter((n, blocks[n]) for n in names))
    with pytest.raises(DataError, match='actions has more rows than terminals'):
        normalize_actions({'train': late})


def test_the_range_goes_with_the_run(run_fql, assert_one_line, tmp_path, arrays):
    labels = {'rewards': np.arange(40.0), 'masks': np.ones(40)}
    np.savez(tmp_path / 'd.npz', **arrays, **labels)
    data = ('--data-dir', tmp_path / 'data')
    command = ('prepare', '--source', tmp_path / 'd.npz', *data)
    assert_one_line(run_fql(*command), 'outside [-1, 1]', '--normalize-actions')
    done = run_fql(*command, '--normalize-actions')
    assert done.returncode == 0, done.stderr
    small = ('--batch-size', 4, '--frame-stack', 1, '--hidden-dims', 8, '--agent', 'bc')
    run = ('--run-dir', tmp_path / 'run', '--steps', 1, '--encoder', 'impala_debug')
    done = run_fql('train', '--task', 'own', '--dataset', 'd', *data, *run, *small)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert stored['action_range'] == {'low': LOW.tolist(), 'high': HIGH.tolist()}
    done = run_fql('train', '--resume', tmp_path / 'run', '--steps', 2)
    assert done.returncode == 0, done.stderr


def test_the_range_goes_through_an_online_phase(fql, tmp_path, monkeypatch, make_arrays):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / 'fql' / 'envs')
    rng = np.random.default_rng(0)
    arrays = make_arrays((20, 20), (2,), dtype=np.float32)
    arrays['actions'] = rng.uniform([0, -4], [20, 6], (40, 2)).astype(np.float32)
    np.savez(tmp_path / 'd.npz', **arrays, rewards=np.zeros(40), masks=np.ones(40))
    data, run = ('--data-dir', tmp_path / 'data'), tmp_path / 'run'
    env, small = 'fake_environments:AddedActions-v0', ('--batch-size', 4, '--hidden-dims', 8)
    small = (*small, '--steps', 1, '--online-steps', 3, '--flow-steps', 1, '--eval-interval', 0)
    again, scaled = ('prepare', 'again', '--source', run / 'replay', *data), '--normalize-actions'
    for arguments in (
        ('prepare', '--source', tmp_path / 'd.npz', *data, scaled),
        ('train', '--task', 'own', '--dataset', 'd', '--env', env, *data, '--run-dir', run, *small),
        again,
    ):
        done = fql(*arguments)
        assert done.returncode == 0, done.stderr
    stores = [open_store(tmp_path / 'data' / name) for name in ('d', 'again')]
    assert range_of(stores[0]) == range_of(stores[1])


@pytest.mark.filterwarnings('error')
def test_a_range_beyond_the_largest_number_is_refused_without_warnings(tmp_path, arrays):
    arrays['actions'][7], arrays['actions'][12] = -1.7e308, 1.7e308
    with pytest.raises(DataError, match='actions holds values that are not finite'):
        prepared(tmp_path, arrays)


def test_what_lies_beyond_the_unit_is_cut_off():
    scale = ActionRange((0.0,), (10.0,))
    np.testing.assert_array_equal(scale.from_unit(np.array([[-3.0], [3.0]])), [[0], [10]])
