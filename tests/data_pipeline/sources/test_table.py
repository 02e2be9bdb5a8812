"""Users' tables: rows and labels of the store, compared with a list of transitions.

The expected transitions are collected one by one in plain Python, by the definition of the layout.
The store's are those that its readers see: row t and row t + 1 where no trajectory ends.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.sources.rows import find_jumps
from data_pipeline.store.frame_store import Split
from data_pipeline.store.writer import write_store

Arrays = dict[str, np.ndarray]


@pytest.fixture
def table() -> Arrays:
    """Four trajectories of 5, 1, 4 and 6 rows; every frame and action differs from all others."""
    ends = np.cumsum([5, 1, 4, 6]) - 1
    rows = 16
    observations = np.zeros((rows, 4, 4, 3), np.uint8)
    observations[:, 0, 0, 0] = np.arange(rows) + 1
    terminals = np.zeros(rows, bool)
    terminals[ends] = True
    return {
        'observations': observations,
        'actions': np.linspace(-0.9, 0.9, 2 * rows).reshape(rows, 2).astype(np.float32),
        'terminals': terminals,
    }


def prepared(tmp_path: Path, arrays: Arrays) -> tuple[Split, list[str]]:
    np.savez(tmp_path / 'd.npz', **arrays)
    store = write_store(tmp_path / 'store', 'd', npz_splits(tmp_path / 'd.npz'), overwrite=True)
    return store.splits['train'], store.manifest.sources['train'].get('notes', [])


def number_of(observation: np.ndarray) -> int:
    return int(observation.reshape(-1)[0]) - 1


def transitions(split: Split) -> list[tuple[Any, ...]]:
    """(row, action, reward, mask, row of the next observation) of each transition."""
    rows = np.flatnonzero(~split.terminals)
    labels = split.labels or {'rewards': np.zeros(len(split.terminals)), 'masks': None}
    return [
        (
            number_of(split.observations[t]),
            split.actions[t].tolist(),
            float(labels['rewards'][t]),
            None if labels['masks'] is None else float(labels['masks'][t]),
            number_of(split.observations[t + 1]),
        )
        for t in rows
    ]


def test_timeouts_beside_terminals(tmp_path, table):
    terminals = np.zeros(16)
    terminals[[4, 5, 9, 15]] = 1
    timeouts = np.arange(16) == 9  # In D4RL such a row is never a transition.
    rewards = np.arange(16) / 2
    for name, scalar in (('timeouts', False), ('truncations', True)):
        arrays = {**table, 'terminals': terminals, name: timeouts, 'rewards': rewards}
        if scalar:
            arrays = {k: v[:, None] if v.ndim == 1 else v for k, v in arrays.items()}
        split, notes = prepared(tmp_path, arrays)
        expected = []
        for i in range(16):
            if timeouts[i]:
                continue
            following = i if terminals[i] else i + 1
            mask = 0.0 if terminals[i] else 1.0
            expected.append((i, table['actions'][i].tolist(), i / 2, mask, following))
        assert transitions(split) == expected
        assert len(split.lengths) == 4
        assert any('terminals (4 rows) and at timeouts (1)' in note for note in notes)
        assert any('the rewards of 1 last rows' in note for note in notes)


def test_the_last_row_of_a_table_ends_a_trajectory_where_timeouts_are_given(tmp_path, table):
    arrays = {**table, 'terminals': np.zeros(16, bool), 'timeouts': np.arange(16) == 7}
    split, _ = prepared(tmp_path, arrays)
    assert np.flatnonzero(split.terminals).tolist() == [7, 15]


def test_stored_next_observations(tmp_path, table):
    """The last row of each trajectory is a transition too; its next observation is only here."""
    following = np.roll(table['observations'], -1, axis=0)
    ends = np.flatnonzero(table['terminals'])
    following[ends, 0, 0, 0] = 101 + np.arange(len(ends))
    arrays = {
        **table,
        'next_observations': following,
        'rewards': np.arange(16.0),
        'masks': np.arange(16) % 3 != 0,
    }
    for terminals in (table['terminals'], np.zeros(16, bool)):
        split, notes = prepared(tmp_path, {**arrays, 'terminals': terminals})
        assert transitions(split) == [
            (i, table['actions'][i].tolist(), i, float(i % 3 != 0), number_of(following[i]))
            for i in range(16)
        ]
        assert len(split.lengths) == 4
        assert any('of 4 trajectories is a transition too' in note for note in notes)


def test_next_observations_over_many_blocks(tmp_path):
    rng = np.random.default_rng(0)
    rows, width = 5000, 500  # Blocks hold 2097 rows.
    observations = rng.normal(size=(rows, width)).astype(np.float32)
    following = np.roll(observations, -1, axis=0)
    ends = np.array([700, 2096, 2097, 4193, 4999])
    following[ends] += 3
    arrays = {
        'observations': observations,
        'next_observations': following,
        'actions': rng.uniform(-1, 1, (rows, 1)),
        'terminals': np.zeros(rows),
    }
    split, _ = prepared(tmp_path, arrays)
    starts = split.valid_rows
    np.testing.assert_array_equal(split.observations[starts], observations)
    np.testing.assert_array_equal(split.observations[starts + 1], following)
    assert len(split.lengths) == 5


def test_jumps_between_blocks_of_any_length():
    """A block of one row has no next row within it; numbers that are not finite differ."""
    rows = np.arange(4, dtype=np.float64)[:, None]
    following = np.array([1, 7, np.nan, 9], np.float64)[:, None]
    for cuts in ([1], [3], [1, 2, 3]):
        jumps = find_jumps(np.split(rows, cuts), np.split(following, cuts))
        assert jumps.tolist() == [False, True, True, False]


def test_the_next_observation_of_another_trajectory_is_not_taken(tmp_path, table):
    """Some recorders store it, as they reset before they read the observation."""
    timeouts = table['terminals']
    arrays = {**table, 'terminals': np.zeros(16), 'timeouts': timeouts}
    arrays['next_observations'] = np.roll(table['observations'], -1, axis=0)
    arrays |= {'rewards': np.zeros(16)}
    split, _ = prepared(tmp_path, arrays)
    pairs = [(start, after) for start, _, _, _, after in transitions(split)]
    inner = [i for i in range(15) if not timeouts[i]]
    assert pairs == [(i, i + 1) for i in inner]


def test_rewards_in_last_rows(tmp_path, table):
    ends = table['terminals']
    arrays = {**table, 'rewards': ends.astype(float), 'masks': 1 - ends}
    split, notes = prepared(tmp_path, arrays)
    assert transitions(split) == [
        (i, table['actions'][i].tolist(), float(ends[i]), float(not ends[i]), i + (not ends[i]))
        for i in range(16)
    ]
    assert any('the last row of 4 trajectories is a transition too' in note for note in notes)
    with pytest.raises(DataError, match=r'the only rewards are in the last rows .* masks to 0'):
        prepared(tmp_path, {**arrays, 'masks': np.ones(16)})


def test_rewards_that_no_observation_follows_are_counted(tmp_path, table):
    arrays = {**table, 'rewards': np.full(16, -1.0), 'masks': np.ones(16)}
    split, notes = prepared(tmp_path, arrays)
    assert (len(split.lengths), len(split.terminals)) == (3, 15)
    assert 'the rewards of 4 last rows of trajectories are not used' in ' '.join(notes)
    # OGBench's labels: 0 where the task is complete, without a notice.
    arrays |= {'rewards': -1.0 * ~table['terminals'], 'masks': ~table['terminals']}
    assert 'last row' not in ' '.join(prepared(tmp_path, arrays)[1])


def test_masks_the_wrong_way_round_are_reported(tmp_path, table):
    ends = table['terminals']
    arrays = {**table, 'rewards': np.full(16, -1.0), 'masks': 1 - ends}
    assert 'wrong way round' not in ' '.join(prepared(tmp_path, arrays)[1])
    _, notes = prepared(tmp_path, {**arrays, 'masks': ends})
    assert any('masks are 0 in 12 of 12 transitions' in note for note in notes)


def test_trajectories_of_one_row_are_skipped(tmp_path, table):
    table['terminals'][[0, 10, 15]] = True
    table['qpos'] = np.arange(16.0)[:, None]
    split, notes = prepared(tmp_path, table)
    rows = [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 15]
    assert [number_of(frame) for frame in split.observations] == rows
    assert split.info['qpos'][:, 0].tolist() == rows
    assert split.actions.tolist() == table['actions'][rows].tolist()
    assert np.flatnonzero(split.terminals).tolist() == [3, 7, 12]
    assert notes == ['skipped trajectories of one row: 3']


def test_errors_name_rows_of_the_source(tmp_path, table):
    table['actions'][12, 1] = 1.5
    with pytest.raises(DataError, match=r'actions reach 1\.5 in row 12'):
        prepared(tmp_path, table)


@pytest.mark.parametrize(('shape', 'size'), [((3, 64, 48), 3), ((4, 84, 84), 4), ((9, 20, 32), 9)])
def test_channel_first_images_are_turned(tmp_path, table, shape, size):
    images = np.random.default_rng(0).integers(0, 256, (16, *shape), np.uint8)
    split, notes = prepared(tmp_path, {**table, 'observations': images})
    assert split.observations.shape[-1] == size
    np.testing.assert_array_equal(split.observations[3], images[3].transpose(1, 2, 0))
    assert f'observations are channel-first {shape}' in notes[0]


@pytest.mark.parametrize('shape', [(64, 48, 3), (84, 84, 1), (3, 64, 3), (40, 40, 12)])
def test_channel_last_images_stay(tmp_path, table, shape):
    images = np.random.default_rng(0).integers(0, 256, (16, *shape), np.uint8)
    split, notes = prepared(tmp_path, {**table, 'observations': images})
    np.testing.assert_array_equal(split.observations[0], images[0])
    assert 'channel' not in ' '.join(notes)


def test_grey_images_get_a_channel(tmp_path, table):
    images = np.random.default_rng(0).integers(0, 256, (16, 40, 30), np.uint8)
    split, notes = prepared(tmp_path, {**table, 'observations': images})
    assert split.observations.shape[1:] == (40, 30, 1)
    np.testing.assert_array_equal(split.observations[0, ..., 0], images[0])
    assert 'grey' in notes[0]


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_actions_of_every_float_type(tmp_path, table, dtype):
    actions = table['actions'].astype(dtype)
    split, _ = prepared(tmp_path, {**table, 'actions': actions})
    starts = [0, 1, 2, 3]
    np.testing.assert_array_equal(split.actions[starts], actions[starts].astype(np.float32))


def test_actions_just_beyond_one_are_clipped_and_counted(tmp_path, table):
    table['actions'][2] = [1.00001, -1.0009]
    table['actions'][11] = [0.5, 1.0001]
    split, notes = prepared(tmp_path, table)
    assert split.actions[2].tolist() == [1, -1]
    assert split.actions[10].tolist() == [0.5, 1]
    assert 'actions just beyond [-1, 1] were clipped in 2 rows' in notes
    table['actions'][2] = [1.0011, 0]
    with pytest.raises(DataError, match=r'actions reach 1\.0011 in row 2'):
        prepared(tmp_path, table)


def test_what_leads_nowhere_may_be_anything(tmp_path, table):
    table['actions'][4] = [np.nan, 7]
    labels = {'rewards': np.full(16, 0.5), 'masks': np.ones(16)}
    labels['rewards'][4] = labels['masks'][4] = np.nan
    split, _ = prepared(tmp_path, {**table, **labels})
    assert split.actions[4].tolist() == [0, 0]
    assert (split.labels['rewards'][4], split.labels['masks'][4]) == (0, 1)


def test_what_is_ignored_is_named(tmp_path, table):
    arrays = {**table, 'wrist_images': np.zeros((16, 8, 8, 3)), 'goal': np.array([{}], object)}
    np.savez(tmp_path / 'd.npz', allow_pickle=True, **arrays)
    store = write_store(tmp_path / 's', 'd', npz_splits(tmp_path / 'd.npz'))
    assert 'ignored: goal, wrist_images' in store.manifest.sources['train']['notes']


@pytest.mark.parametrize(('one', 'other'), [('rewards', 'masks'), ('masks', 'rewards')])
def test_labels_that_miss_the_other(tmp_path, table, one, other):
    split, notes = prepared(tmp_path, {**table, one: np.ones(16)})
    assert split.labels == {}
    assert f'{one} are ignored, as there are no {other}' in ' '.join(notes)


def test_following_observations_that_are_no_numbers_are_refused(tmp_path, table):
    vectors = np.arange(16, dtype=np.float32)[:, None]
    arrays = {**table, 'observations': vectors, 'next_observations': vectors + 1}
    arrays['next_observations'][2] = np.nan
    np.savez(tmp_path / 'd.npz', **arrays)
    with pytest.raises(DataError, match='next_observations holds values that are not finite'):
        npz_splits(tmp_path / 'd.npz')
