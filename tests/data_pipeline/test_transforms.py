"""Host transforms against plain NumPy, and what they are drawn from."""

import itertools

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import LoaderConfig, make_batches, make_windows
from data_pipeline.store.frame_store import prepare_store
from data_pipeline.transforms import Transform

FLIP, WINDOW = Transform('flip', 0.5), Transform('window', 0.5)
HEIGHT, WIDTH = 8, 10


@pytest.fixture(params=[1, 3], ids=['one channel', 'three channels'])
def split(request, tmp_path, make_arrays):
    arrays = make_arrays(shape=(HEIGHT, WIDTH, request.param))
    arrays['observations'] = np.maximum(arrays['observations'], 1)  # Black is what is cut.
    np.savez(tmp_path / 'tiny.npz', **arrays)
    return prepare_store(tmp_path / 'store', 'tiny', tmp_path / 'tiny.npz').splits['train']


def take(split, count, *transforms, start=0, **settings):
    zeros = np.zeros(len(split.actions), np.float32)
    config = LoaderConfig(batch_size=8, frame_stack=3, transforms=transforms, **settings)
    return list(itertools.islice(make_batches(split, zeros, zeros, config, start), count))


def samples(split, *transforms, count=40, **settings):
    """(n, t, h, w, c): the frames of all samples of as many batches."""
    return np.concatenate([b['frames'] for b in take(split, count, *transforms, **settings)])


def kept_window(before, after):
    """The slices of rows and columns that are left of a sample; all else must be black."""
    kept = (after > 0).all(axis=(0, 3))
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    place = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    expected = np.zeros_like(before)
    expected[:, place[0], place[1]] = before[:, place[0], place[1]]
    np.testing.assert_array_equal(after, expected)
    return place


def test_flip_mirrors_some_samples_and_leaves_the_others(split):
    flipped = []
    for before, after in zip(samples(split), samples(split, FLIP), strict=True):
        flipped.append((before != after).any())
        np.testing.assert_array_equal(after, before[:, :, ::-1] if flipped[-1] else before)
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / len(flipped) ** 0.5


def test_window_is_of_every_size_and_at_every_place(split):
    places = [
        kept_window(before, after)
        for before, after in zip(
            samples(split), samples(split, Transform('window', 1)), strict=True
        )
    ]
    for axis, size in enumerate((HEIGHT, WIDTH)):
        lengths = [place[axis].stop - place[axis].start for place in places]
        assert set(lengths) == set(range(size // 2, size + 1))
        starts = {p[axis].start for p, n in zip(places, lengths, strict=True) if n == size // 2}
        assert starts == set(range(size - size // 2 + 1))
    rows, columns = (np.array([place[axis].start for place in places]) for axis in (0, 1))
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.25


@pytest.mark.parametrize('probability', [0, 0.25, 1])
def test_samples_are_chosen_with_the_probability(split, probability):
    before, after = samples(split), samples(split, Transform('flip', probability))
    share = (before != after).any(axis=(1, 2, 3, 4)).mean()
    assert abs(share - probability) <= 4 * (probability * (1 - probability) / len(after)) ** 0.5


def test_transforms_are_made_one_after_the_other(split):
    """The one that comes second draws for itself, and changes what the first has left."""
    plain = samples(split)
    windowed, both = samples(split, WINDOW), samples(split, WINDOW, FLIP)
    mirrored = (both != windowed).any(axis=(1, 2, 3, 4))
    np.testing.assert_array_equal(both[mirrored], windowed[mirrored][:, :, :, ::-1])
    changed = (windowed != plain).any(axis=(1, 2, 3, 4))
    counts = np.array([[(a & b).sum() for a in (changed, ~changed)] for b in (mirrored, ~mirrored)])
    assert counts.min() > 0.1 * len(plain)  # All four, so not the same coin twice.


def test_rows_and_shifts_are_drawn_as_without_transforms(split):
    for plain, changed in zip(take(split, 10), take(split, 10, FLIP, WINDOW), strict=True):
        for name in plain.keys() - {'frames'}:
            np.testing.assert_array_equal(changed[name], plain[name])


def test_batch_n_is_the_same_from_any_start_and_in_parts(split):
    batches = take(split, 6, FLIP, WINDOW)
    late = take(split, 1, FLIP, WINDOW, start=4)[0]
    np.testing.assert_array_equal(late['frames'], batches[4]['frames'])
    parts = [take(split, 6, FLIP, WINDOW, process_index=i, process_count=2) for i in range(2)]
    for n, batch in enumerate(batches):
        joined = np.concatenate([part[n]['frames'] for part in parts])
        np.testing.assert_array_equal(joined, batch['frames'])
    other = take(split, 1, FLIP, WINDOW, seed=1)[0]
    assert (other['frames'] != batches[0]['frames']).any()


def test_the_stacks_of_a_window_are_changed_apart(split):
    def windows(*transforms):
        config = LoaderConfig(8, 3, horizon=2, shift_probability=0, transforms=transforms)
        return list(itertools.islice(make_windows(split, config), 40))

    flipped = {name: [] for name in ('frames', 'later_frames')}
    for plain, changed in zip(windows(), windows(FLIP), strict=True):
        for name, flags in flipped.items():
            is_flipped = (changed[name] != plain[name]).any(axis=(1, 2, 3, 4))
            expected = plain[name].copy()
            expected[is_flipped] = expected[is_flipped][:, :, :, ::-1]
            np.testing.assert_array_equal(changed[name], expected)
            flags.extend(is_flipped)
    correlation = np.corrcoef(flipped['frames'], flipped['later_frames'])[0, 1]
    assert abs(correlation) < 4 / len(flipped['frames']) ** 0.5


def test_what_cannot_be_done(tmp_path, make_arrays):
    with pytest.raises(DataError, match="no transform 'twirl', only flip, window"):
        Transform('twirl', 0.5)
    with pytest.raises(DataError, match='probability'):
        Transform('flip', 1.5)
    np.savez(tmp_path / 'vectors.npz', **make_arrays(shape=(5,), dtype=np.float32))
    vectors = prepare_store(tmp_path / 'v', 'v', tmp_path / 'vectors.npz').splits['train']
    with pytest.raises(DataError, match='vectors'):
        take(vectors, 1, FLIP)
