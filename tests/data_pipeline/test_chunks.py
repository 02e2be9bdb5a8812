"""Chunks of actions, and next actions, against plain NumPy and against published sampling."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.errors import DataError
from data_pipeline.files import load_arrays
from data_pipeline.loader import (
    ACTION_LIMIT,
    LoaderConfig,
    batch_maker,
    find_trajectories,
    make_batches,
    num_starts,
    num_whole,
)
from data_pipeline.sample_layout import frame_offsets
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import Split
from data_pipeline.store.writer import write_store

PARITY = Path(__file__).resolve().parents[1] / 'parity' / 'data'
NAMED = os.environ.get('FQL_REFERENCE')
REFERENCES = [Path(NAMED)] if NAMED else sorted(PARITY.glob('chunk_sampling_*.npz'))
LENGTHS = (2, 3, 7, 2, 9)


@pytest.fixture
def make_split(tmp_path, make_arrays):
    """make_split(lengths=..., shape=...): a split of `make_arrays` of the same arguments."""

    def make(**arguments: object) -> Split:
        np.savez(tmp_path / 'tiny.npz', **make_arrays(**{'lengths': LENGTHS, **arguments}))
        splits = npz_splits(tmp_path / 'tiny.npz')
        return write_store(tmp_path / 'store', 'tiny', splits).splits['train']

    return make


def random_labels(split):
    rng = np.random.default_rng(7)
    rows = len(split.actions)
    masks = (rng.uniform(size=rows) < 0.7).astype(np.float32)
    return rng.normal(size=rows).astype(np.float32), masks


def take(split, count, start=0, **settings):
    config = LoaderConfig(**{'batch_size': 8, **settings})
    batches = make_batches(split, *random_labels(split), config, start)
    return list(itertools.islice(batches, count))


def crop(image, shift, pad=3):
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
    return padded[shift[0] : shift[0] + len(image), shift[1] : shift[1] + image.shape[1]]


def plain_chunk(split, labels, t, horizon, discount):
    """The chunk that begins in row t, step by step."""
    last = t + int(np.argmax(split.terminals[t:]))
    chunk = {
        'actions': np.zeros((horizon, split.actions.shape[1]), np.float32),
        'rewards': np.zeros(horizon),
        'masks': np.zeros(horizon),
        'valid': np.zeros(horizon),
    }
    reward, mask = 0.0, 1.0
    for j in range(horizon):
        if t + j < last:
            chunk['actions'][j] = np.clip(split.actions[t + j], -ACTION_LIMIT, ACTION_LIMIT)
            chunk['valid'][j] = 1
            reward += discount**j * labels[0][t + j]
            mask = min(mask, labels[1][t + j])
        chunk['rewards'][j], chunk['masks'][j] = reward, mask
    return chunk


@pytest.mark.parametrize(('stack', 'horizon'), [(1, 2), (1, 5), (3, 2), (3, 3), (3, 5), (5, 3)])
def test_chunks_against_numpy(make_split, stack, horizon):
    split = make_split(shape=(8, 9, 3))
    labels = random_labels(split)
    firsts = split.first_rows
    lasts = firsts + np.repeat(split.lengths, split.lengths) - 1
    now, later = slice(0, stack), slice(-stack, None)
    is_shifted = []
    for batch in take(split, 12, frame_stack=stack, horizon=horizon, discount=0.9):
        assert batch['inputs'].shape == (8, stack + min(stack, horizon), 8, 9, 3)
        for name in ('actions', 'rewards', 'masks', 'valid'):
            assert batch[name].dtype == np.float32
        for i, t in enumerate(batch['indices']):
            for name, expected in plain_chunk(split, labels, t, horizon, 0.9).items():
                np.testing.assert_allclose(batch[name][i], expected, rtol=1e-6, atol=1e-6)
            for places, row in ((now, t), (later, t + horizon)):
                rows = np.clip(np.arange(row - stack + 1, row + 1), firsts[t], lasts[t])
                expected = [crop(split.observations[r], batch['shifts'][i]) for r in rows]
                np.testing.assert_array_equal(batch['inputs'][i, places], expected)
        is_shifted.append((batch['shifts'] != 3).any())
    assert any(is_shifted)
    assert not all(is_shifted)


def test_chunks_begin_in_all_transitions_that_have_as_many_behind_them(make_split):
    """Also in those whose trajectory ends sooner; the last ones of the split are left out."""
    split = make_split()
    batches = take(split, 400, batch_size=14, horizon=5)
    rows, counts = np.unique([batch['indices'] for batch in batches], return_counts=True)
    assert rows.tolist() == split.valid_rows[:-4].tolist()
    expected = 400 * 14 / len(rows)
    # 13 degrees of freedom: exceeded once in 1000 seeds.
    assert len(rows) == 14
    assert ((counts - expected) ** 2 / expected).sum() < 34.5


def test_a_chunk_of_one_is_a_transition(make_split):
    split = make_split()
    labels = random_labels(split)
    for batch in take(split, 3, horizon=1, discount=0.5):
        assert set(batch) == {'inputs', 'actions', 'rewards', 'masks', 'indices', 'shifts'}
        np.testing.assert_array_equal(batch['rewards'], labels[0][batch['indices']])
        np.testing.assert_array_equal(batch['masks'], labels[1][batch['indices']])


def test_processes_load_the_parts_of_one_batch(make_split):
    split = make_split()
    settings = {'frame_stack': 2, 'horizon': 3}
    parts = [take(split, 3, process_index=i, process_count=2, **settings) for i in range(2)]
    for n, batch in enumerate(take(split, 3, **settings)):
        for name, values in batch.items():
            joined = np.concatenate([part[n][name] for part in parts])
            np.testing.assert_array_equal(joined, values)


def test_vectors_come_in_chunks_too(make_split):
    split = make_split(shape=(6,), dtype=np.float32)
    for batch in take(split, 2, frame_stack=2, horizon=4):
        assert batch['inputs'].shape == (8, 4, 6)
        rows = batch['indices'][:, None] + np.array(frame_offsets(2, 4))
        first = split.first_rows[batch['indices']][:, None]
        last = first + np.repeat(split.lengths, split.lengths)[batch['indices']][:, None] - 1
        np.testing.assert_array_equal(
            batch['inputs'], split.observations[np.clip(rows, first, last)]
        )


def test_next_actions(make_split):
    """As published: those of the next transition, even if it is of another trajectory."""
    split = make_split()
    valid_rows = split.valid_rows.tolist()
    seen = set()
    for batch in take(split, 20, next_actions=True):
        assert batch['next_actions'].dtype == batch['next_actions_valid'].dtype == np.float32
        for i, t in enumerate(batch['indices'].tolist()):
            place = valid_rows.index(t)
            following = valid_rows[min(place + 1, len(valid_rows) - 1)]
            np.testing.assert_array_equal(
                batch['next_actions'][i],
                np.clip(split.actions[following], -ACTION_LIMIT, ACTION_LIMIT),
            )
            assert batch['next_actions_valid'][i] == (not split.terminals[t + 1])
            seen.add(t)
    assert seen == set(valid_rows)


def test_next_actions_change_nothing_else(make_split):
    split = make_split()
    plain, more = take(split, 1)[0], take(split, 1, next_actions=True)[0]
    assert set(more) - set(plain) == {'next_actions', 'next_actions_valid'}
    for name, values in plain.items():
        np.testing.assert_array_equal(more[name], values)


def test_what_cannot_be_loaded(make_split):
    split = make_split()
    assert len(take(split, 1, batch_size=16, horizon=3)) == 1
    with pytest.raises(DataError, match='18 transitions are too few for batch_size 17 and chunks'):
        take(split, 1, batch_size=17, horizon=3)
    with pytest.raises(DataError, match='chunks of 19'):
        take(split, 1, batch_size=1, horizon=19)
    with pytest.raises(DataError, match='horizon'):
        take(split, 1, horizon=0)
    with pytest.raises(DataError, match='discount'):
        take(split, 1, horizon=2, discount=1.1)
    with pytest.raises(DataError, match='next_actions'):
        take(split, 1, horizon=2, next_actions=True)


@pytest.mark.parametrize('horizon', [2, 6, 8])
def test_which_chunks_lie_within_their_trajectory(make_split, horizon):
    split, config = make_split(), LoaderConfig(8, horizon=horizon)
    starts = split.valid_rows[: num_starts(split, config)]
    ends = np.flatnonzero(split.terminals)
    last = ends[np.searchsorted(ends, starts)]
    assert num_whole(split, config) == np.count_nonzero(starts + horizon <= last)


def test_data_without_a_whole_chunk_are_refused(make_split):
    """A critic that learns from whole chunks only would learn nothing."""
    split = make_split()
    assert take(split, 1, horizon=8)[0]['valid'].shape == (8, 8)
    with pytest.raises(DataError, match=r'the 9 transitions.*--horizon of at most 8'):
        take(split, 1, horizon=9)


def rows_of_states(reference):
    """The published layout, one row per transition, in ours: adds each trajectory's last state.

    Returns:
        Arrays of the file format of OGBench, rewards and masks.
    """
    data = {name[8:]: values for name, values in reference.items() if name.startswith('dataset/')}
    ends = np.flatnonzero(data['terminals']) + 1
    rows = {
        'observations': np.insert(
            data['observations'], ends, data['next_observations'][ends - 1], axis=0
        ),
        'terminals': np.insert(np.zeros(len(data['actions']), bool), ends, True),
    }
    for name in ('actions', 'rewards', 'masks'):
        # The values of these rows must not be used.
        rows[name] = np.insert(data[name], ends, 0.5, axis=0)
    return rows, rows.pop('rewards'), rows.pop('masks')


def batch_of_reference(tmp_path, reference, indices, **settings):
    """The batch of transitions `indices` of the published data."""
    arrays, rewards, masks = rows_of_states(reference)
    np.savez(tmp_path / 'reference.npz', **arrays)
    splits = npz_splits(tmp_path / 'reference.npz')
    split = write_store(tmp_path / 'store', 'r', splits).splits['train']
    config = LoaderConfig(len(indices), shift_probability=0, **settings)
    batch_of = batch_maker(split, find_trajectories(split), rewards, masks, config)
    batch = batch_of(tf.constant(indices, tf.int64), tf.constant(0, tf.int64))
    return {name: values.numpy() for name, values in batch.items()}


@pytest.fixture(params=REFERENCES, ids=lambda path: path.stem)
def reference(request):
    arrays = load_arrays(request.param)
    if 'batch/valid' not in arrays:
        pytest.skip('the reference that was named is of something else')
    return arrays


def test_chunks_against_published_sampling(tmp_path, reference):
    config = json.loads(str(reference['config']))
    horizon, discount = config['horizon_length'], config['discount']
    indices = reference['indices']
    batch = batch_of_reference(tmp_path, reference, indices, horizon=horizon, discount=discount)
    valid = reference['batch/valid'].astype(bool)
    assert not valid.all()
    np.testing.assert_array_equal(batch['valid'], valid)
    for field in ('actions', 'masks', 'rewards'):
        np.testing.assert_allclose(
            batch[field][valid], reference[f'batch/{field}'][valid], rtol=1e-6, atol=1e-6
        )
    assert batch['inputs'].shape[1] == 2
    np.testing.assert_array_equal(batch['inputs'][:, 0], reference['batch/observations'])
    later = reference['batch/next_observations']
    # For images, the time axis is the second to last.
    later = later[..., -1, :] if config['pixels'] else later[:, -1]
    last_steps = indices + horizon - 1
    np.testing.assert_array_equal(later, reference['dataset/next_observations'][last_steps])
    # The file's next observations are random. Only a trajectory's last one is also a state of ours,
    # where the observation after a step is that of the next step.
    is_end = reference['dataset/terminals'][last_steps].astype(bool)
    is_inside = valid[:, -1] & ~is_end
    is_end &= valid[:, -1]
    assert is_end.any()
    np.testing.assert_array_equal(batch['inputs'][is_end, 1], later[is_end])
    np.testing.assert_array_equal(
        batch['inputs'][is_inside, 1],
        reference['dataset/observations'][last_steps[is_inside] + 1],
    )
    assert len(reference['dataset/actions']) - horizon + 1 == reference['index_bound']


def test_next_actions_against_published_sampling(tmp_path, reference):
    """Those of the published sampler for each step of a chunk; here for all transitions."""
    horizon = json.loads(str(reference['config']))['horizon_length']
    indices = np.arange(len(reference['dataset/actions']))
    batch = batch_of_reference(tmp_path, reference, indices, next_actions=True)
    places = reference['indices'][:, None] + np.arange(horizon)
    np.testing.assert_allclose(
        batch['next_actions'][places], reference['batch/next_actions'], rtol=1e-6, atol=2e-5
    )
    np.testing.assert_array_equal(batch['next_actions_valid'], 1 - reference['dataset/terminals'])
