"""Windows against plain NumPy."""

import itertools

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import ACTION_LIMIT, LoaderConfig, make_windows
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import Split
from data_pipeline.store.writer import write_store

HORIZON = 4


@pytest.fixture
def make_split(tmp_path, make_arrays):
    """make_split(lengths=..., shape=...): a split of `make_arrays` of the same arguments."""

    def make(**arguments: object) -> Split:
        np.savez(tmp_path / 'tiny.npz', **make_arrays(**arguments))
        splits = npz_splits(tmp_path / 'tiny.npz')
        return write_store(tmp_path / 'store', 'tiny', splits).splits['train']

    return make


def take(split, count, start=0, horizon=HORIZON, **settings):
    config = LoaderConfig(**{'batch_size': 8, 'frame_stack': 3, 'horizon': horizon, **settings})
    return list(itertools.islice(make_windows(split, config, start), count))


def crop(image, shift, pad=3):
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode='edge')
    return padded[shift[0] : shift[0] + len(image), shift[1] : shift[1] + image.shape[1]]


def test_against_numpy(make_split):
    split = make_split(lengths=(2, 3, 7, 2, 9), shape=(8, 9, 3))
    ends = np.flatnonzero(split.terminals)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifted = []
    for batch in take(split, 30):
        for i, (t, k) in enumerate(zip(batch['indices'], batch['offsets'], strict=True)):
            place = np.searchsorted(ends, t)
            assert 1 <= k <= min(HORIZON, ends[place] - t)
            for name, shifts, row in (
                ('frames', 'shifts', t),
                ('later_frames', 'later_shifts', t + k),
            ):
                rows = [max(row - back, starts[place]) for back in (2, 1, 0)]
                expected = [crop(split.observations[r], batch[shifts][i]) for r in rows]
                np.testing.assert_array_equal(batch[name][i], expected)
            expected = np.zeros((HORIZON, 4), np.float32)
            expected[:k] = np.clip(split.actions[t : t + k], -ACTION_LIMIT, ACTION_LIMIT)
            np.testing.assert_array_equal(batch['actions'][i], expected)
        shifted.append((batch['shifts'] != 3).any() or (batch['later_shifts'] != 3).any())
    assert any(shifted)
    assert not all(shifted)


def test_offsets_are_uniform_in_what_the_trajectory_allows(make_split):
    split = make_split(lengths=(6, 40))
    batches = take(split, 200, batch_size=32)
    indices = np.concatenate([batch['indices'] for batch in batches])
    offsets = np.concatenate([batch['offsets'] for batch in batches])
    for left in (1, 2, 3, HORIZON):
        rows = {5 - left, 45 - left} if left < HORIZON else set(indices) - {2, 3, 4, 42, 43, 44}
        counts = np.bincount(offsets[np.isin(indices, list(rows))], minlength=HORIZON + 1)
        assert counts[left + 1 :].sum() == counts[0] == 0
        expected = counts.sum() / left
        assert expected > 50
        # At most 3 degrees of freedom: exceeded once in 1000 seeds.
        assert ((counts[1 : left + 1] - expected) ** 2 / expected).sum() < 16.3


def test_the_two_shifts_are_drawn_apart(make_split):
    batches = take(make_split(), 200, shift_probability=1)
    shifts = np.concatenate([batch['shifts'] for batch in batches])
    later = np.concatenate([batch['later_shifts'] for batch in batches])
    assert set(shifts.ravel()) == set(later.ravel()) == set(range(7))
    correlation = np.corrcoef(np.concatenate([shifts, later], axis=1).T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / len(shifts) ** 0.5


def test_a_batch_depends_on_seed_and_step_only(make_split):
    split = make_split()
    batches = take(split, 6)
    for late, early in zip(take(split, 3, start=3), batches[3:], strict=True):
        for name in early:
            np.testing.assert_array_equal(late[name], early[name])
    other = take(split, 1, seed=1)[0]
    for name in ('indices', 'offsets'):
        assert (other[name] != batches[0][name]).any()
        assert (batches[1][name] != batches[0][name]).any()


def test_processes_load_the_parts_of_one_batch(make_split):
    split = make_split()
    whole = take(split, 4)
    parts = [take(split, 4, process_index=i, process_count=2) for i in range(2)]
    for n, batch in enumerate(whole):
        for name, values in batch.items():
            joined = np.concatenate([part[n][name] for part in parts])
            np.testing.assert_array_equal(joined, values)


def test_what_cannot_be_loaded(make_split):
    split = make_split()
    with pytest.raises(DataError, match='10 transitions are too few for batch_size 11'):
        take(split, 1, batch_size=11)
    with pytest.raises(DataError, match='horizon=0'):
        take(split, 1, horizon=0)


def test_vectors_are_no_images(make_split):
    with pytest.raises(DataError, match='vectors'):
        take(make_split(shape=(5,), dtype=np.float32), 1)
