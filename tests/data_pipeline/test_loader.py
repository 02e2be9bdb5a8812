import gc
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import LoaderConfig, make_batches
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import FrameStore, Split
from data_pipeline.store.writer import write_store

Batch = dict[str, np.ndarray]


@pytest.fixture
def make_split(tmp_path, make_arrays) -> Callable[..., Split]:
    """make_split(lengths=..., shape=...): a split of `make_arrays` of the same arguments."""

    def make(**arguments: object) -> Split:
        np.savez(tmp_path / 'tiny.npz', **make_arrays(**arguments))
        splits = npz_splits(tmp_path / 'tiny.npz')
        return write_store(tmp_path / 'store', 'tiny', splits).splits['train']

    return make


@pytest.fixture(scope='module')
def real_store(tmp_path_factory) -> FrameStore:
    shared = Path(__file__).resolve().parents[3] / 'shared' / 'data'
    source = shared / 'visual-cube-single-play-v0.npz'
    if not source.exists():
        pytest.skip(f'{source} is absent: the real dataset is not part of the repository')
    return write_store(tmp_path_factory.mktemp('real') / 'store', 'real', npz_splits(source))


def take(split: Split, count: int, start_step: int = 0, **settings: object) -> list[Batch]:
    """Batches from `start_step` on, with labels that identify their row."""
    rows = len(split.actions)
    config = LoaderConfig(**{'batch_size': 8, **settings})  # type: ignore[arg-type]
    batches = make_batches(split, row_rewards(rows), row_rewards(rows) + 0.5, config, start_step)
    return list(itertools.islice(batches, count))


def row_rewards(rows: int) -> np.ndarray:
    return np.arange(rows, dtype=np.float32)


def plain_frames(
    frames: np.ndarray, terminals: np.ndarray, row: int, shift: np.ndarray, stack: int
) -> np.ndarray:
    """The frames of one sample by definition: walk back, pad, crop."""
    first = row
    while first > 0 and not terminals[first - 1]:
        first -= 1
    out = []
    for back in range(stack - 1, -2, -1):
        frame = frames[max(row - back, first)]
        if frame.ndim == 3:
            height, width, _ = frame.shape
            top, left = shift
            padded = np.pad(frame, ((3, 3), (3, 3), (0, 0)), mode='edge')
            frame = padded[top : top + height, left : left + width]
        out.append(frame)
    return np.stack(out)


def assert_batch_is_plain(batch: Batch, arrays: Batch, stack: int) -> None:
    expected = [
        plain_frames(arrays['observations'], arrays['terminals'], row, shift, stack)
        for row, shift in zip(batch['indices'], batch['shifts'], strict=True)
    ]
    np.testing.assert_array_equal(batch['inputs'], expected)
    np.testing.assert_array_equal(
        batch['actions'], np.clip(arrays['actions'][batch['indices']], -0.99999, 0.99999)
    )
    np.testing.assert_array_equal(batch['rewards'], batch['indices'])
    np.testing.assert_array_equal(batch['masks'], batch['indices'] + 0.5)


@pytest.mark.parametrize('stack', [1, 3, 5])
def test_batches_are_what_they_say(make_split, make_arrays, stack):
    """Against a plain version: first frames, last transitions, trajectories of two rows."""
    shape = (8, 9, 3)  # Not square, so that rows and columns cannot be mixed up.
    split = make_split(shape=shape)
    batches = take(split, 12, frame_stack=stack, seed=1)
    for batch in batches:
        assert_batch_is_plain(batch, make_arrays(shape=shape), stack)
    seen = {row for batch in batches for row in batch['indices'].tolist()}
    assert seen == {0, 2, 3, 5, 6, 7, 8, 9, 10, 12}
    assert {bool((batch['shifts'] == 3).all()) for batch in batches} == {True, False}


def test_batches_of_real_data(real_store, real_source):
    with np.load(real_source, allow_pickle=False) as file:
        arrays = dict(file)
    batches = take(
        real_store.splits['train'], 4, batch_size=256, frame_stack=3, shift_probability=1
    )
    for batch in batches:
        assert batch['inputs'].shape == (256, 4, 64, 64, 3)
        assert_batch_is_plain(batch, arrays, 3)
    assert np.unique(np.concatenate([b['shifts'] for b in batches]), axis=0).shape == (49, 2)


def test_fields(make_split):
    batch = take(make_split(), 1, frame_stack=2, shift_probability=1)[0]
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        'inputs': (np.uint8, (8, 3, 8, 8, 3)),
        'actions': (np.float32, (8, 4)),
        'rewards': (np.float32, (8,)),
        'masks': (np.float32, (8,)),
        'indices': (np.int64, (8,)),
        'shifts': (np.int32, (8, 2)),
    }


def test_actions_are_clipped_short_of_one(tmp_path, make_arrays):
    arrays = make_arrays()
    arrays['actions'][:] = np.where(np.arange(14)[:, None] % 2, 1, -1)
    np.savez(tmp_path / 'd.npz', **arrays)
    split = write_store(tmp_path / 'd', 'd', npz_splits(tmp_path / 'd.npz')).splits['train']
    for batch in take(split, 3):
        assert set(np.abs(batch['actions']).ravel().tolist()) == {float(np.float32(1 - 1e-5))}
        np.testing.assert_array_equal(np.sign(batch['actions'][:, 0]) > 0, batch['indices'] % 2)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_vectors_are_stacked_and_never_shifted(make_split, make_arrays, dtype):
    split = make_split(shape=(9,), dtype=dtype)
    arrays = make_arrays(shape=(9,), dtype=dtype)
    arrays['observations'] = arrays['observations'].astype(np.float32)
    for batch in take(split, 3, frame_stack=3, shift_probability=1):
        assert batch['inputs'].dtype == np.float32
        assert_batch_is_plain(batch, arrays, 3)
        assert (batch['shifts'] == 3).all()


def test_batch_n_is_the_same_from_any_start(make_split):
    split = make_split()
    batches = take(split, 12, frame_stack=3)
    for start in (1, 5, 11):
        for name, array in take(split, 1, start, frame_stack=3)[0].items():
            np.testing.assert_array_equal(array, batches[start][name])
    for name, array in take(split, 2, 10**9)[1].items():
        np.testing.assert_array_equal(array, take(split, 1, 10**9 + 1)[0][name])


def test_batches_differ_by_step_and_seed(make_split):
    split = make_split()
    drawn = [*take(split, 20, seed=0), *take(split, 20, seed=1), *take(split, 20, seed=-4)]
    assert len({batch['indices'].tobytes() for batch in drawn}) == 60


DRAW = """
import itertools, sys
from pathlib import Path
import numpy as np
from data_pipeline.store.frame_store import open_store
from data_pipeline.loader import LoaderConfig, make_batches

split = open_store(Path(sys.argv[1])).splits['train']
labels = np.zeros(len(split.actions), np.float32)
batches = make_batches(split, labels, labels, LoaderConfig(8, 3), start_step=3)
drawn = list(itertools.islice(batches, 20))
np.savez(sys.argv[2], **{name: np.stack([batch[name] for batch in drawn]) for name in drawn[0]})
# The iterator is live and prefetching when the interpreter ends.
"""


def test_another_process_draws_the_same_and_exits(make_split, run_python, tmp_path):
    split = make_split()
    result = run_python(DRAW, split.path.parent, tmp_path / 'drawn.npz', timeout=120)
    assert (result.returncode, result.stderr) == (0, '')  # TensorFlow is quiet.
    here = take(split, 20, frame_stack=3, start_step=3)
    with np.load(tmp_path / 'drawn.npz') as drawn:
        for name in ('inputs', 'indices'):
            np.testing.assert_array_equal(drawn[name], [batch[name] for batch in here])


def test_indices_are_uniform_over_transitions(make_split):
    split = make_split(lengths=(2, 3, 7, 2, 9, 2))
    transitions = 19
    batches = take(split, 400, batch_size=16)
    rows, counts = np.unique([b['indices'] for b in batches], return_counts=True)
    assert rows.tolist() == np.flatnonzero(~split.terminals).tolist()
    expected = 400 * 16 / transitions
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 42.3  # 18 degrees of freedom: exceeded once in 1000 seeds.


@pytest.mark.parametrize('probability', [0, 0.25, 0.5, 1])
def test_shifts_come_by_the_batch(make_split, probability):
    split = make_split()
    shifts = np.array([b['shifts'] for b in take(split, 400, shift_probability=probability)])
    is_shifted = (shifts != 3).any(axis=(1, 2))
    # A shifted batch of 8 that looks unshifted comes once in 49^8.
    assert (
        abs(is_shifted.mean() - probability) <= 4 * (probability * (1 - probability) / 400) ** 0.5
    )
    if probability > 0:
        offsets = shifts[is_shifted].reshape(-1, 2)
        cells = np.histogram2d(*offsets.T, bins=7, range=[(-0.5, 6.5)] * 2)[0]
        expected = len(offsets) / 49
        assert cells.sum() == len(offsets)
        assert ((cells - expected) ** 2 / expected).sum() < 84  # 48 degrees, once in 1000.


def test_indices_do_not_depend_on_the_shift(make_split):
    split = make_split()
    for a, b in zip(take(split, 5), take(split, 5, shift_probability=0), strict=True):
        np.testing.assert_array_equal(a['indices'], b['indices'])


def test_batches_outlive_what_made_them(make_split):
    """Only the iterator holds the mapping; a use of freed memory would crash or differ."""
    split = make_split()
    expected = take(split, 60)
    labels = row_rewards(len(split.actions))
    batches = make_batches(split, labels, labels, LoaderConfig(8))
    del split
    gc.collect()
    for batch in expected:
        np.testing.assert_array_equal(next(batches)['inputs'], batch['inputs'])


def test_batches_are_not_written_over_by_later_ones(make_split):
    split = make_split()
    labels = row_rewards(len(split.actions))
    batches = make_batches(split, labels, labels, LoaderConfig(8))
    first = next(batches)
    before = first['inputs'].copy()
    list(itertools.islice(batches, 30))
    np.testing.assert_array_equal(first['inputs'], before)


MEMORY = """
import itertools, sys
from pathlib import Path
import numpy as np
from data_pipeline.store.frame_store import Split
from data_pipeline.loader import LoaderConfig, make_batches

def peak():
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024

folder, rows = Path(sys.argv[1]), int(sys.argv[2])
with open(folder / 'observations.npy', 'wb') as file:
    shape = (rows, 64, 64, 3)
    np.lib.format.write_array_header_1_0(
        file, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
    )
    file.truncate(file.tell() + rows * 64 * 64 * 3)  # A sparse file.
frames = np.load(folder / 'observations.npy', mmap_mode='r')
terminals = np.zeros(rows, bool)
terminals[999::1000] = True
split = Split('train', folder, frames, np.zeros((rows, 5), np.float32), terminals, {})
labels = np.zeros(rows, np.float32)
before = peak()
batches = make_batches(split, labels, labels, LoaderConfig(16, 3))
for _ in itertools.islice(batches, 20):
    pass
print(peak() - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/self/status')
def test_frames_are_never_copied_to_memory(tmp_path, run_python):
    """A file of 1.2 GB, of which the process never holds more than a small part."""
    result = run_python(MEMORY, tmp_path, 100_000)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 300  # MiB


def test_more_than_there_is_to_draw_from(make_split):
    split = make_split()
    assert len(take(split, 1, batch_size=10)[0]['indices']) == 10
    with pytest.raises(DataError, match='10 transitions are too few for batch_size 11'):
        take(split, 1, batch_size=11)


@pytest.mark.parametrize(
    'settings',
    [
        {'batch_size': 0},
        {'frame_stack': 0},
        {'shift_probability': 1.1},
        {'shift_probability': float('nan')},
    ],
)
def test_settings_without_meaning(make_split, settings):
    with pytest.raises(DataError):
        take(make_split(), 1, **settings)


def test_images_that_are_too_small_to_be_shifted(make_split):
    split = make_split(shape=(9, 3, 3))
    with pytest.raises(DataError, match=r'images \(9, 3, 3\) are too small to be shifted by 3'):
        take(split, 1)
    assert take(split, 1, shift_probability=0)[0]['inputs'].shape == (8, 2, 9, 3, 3)


def test_labels_of_another_split(make_split):
    split = make_split()
    with pytest.raises(ValueError, match='13 rewards and 14 masks for 14 rows'):
        make_batches(split, row_rewards(13), row_rewards(14), LoaderConfig(8))


@pytest.mark.skipif(not Path('/proc/self/smaps').exists(), reason='reads /proc/self/smaps')
def test_single_pages_are_read_where_frames_are_drawn(make_split):
    """The system's read-ahead could amount to gigabytes for one batch."""
    split = make_split()
    labels = row_rewards(len(split.actions))
    batches = make_batches(split, labels, labels, LoaderConfig(8))
    next(batches)
    mappings = re.split(
        r'^(?=[0-9a-f]+-[0-9a-f]+ )', Path('/proc/self/smaps').read_text(), flags=re.M
    )
    path = str(split.path / 'observations.npy')
    # The loader's is the private, writable one.
    (flags,) = (
        re.search('VmFlags: (.*)', text)[1].split()
        for text in mappings
        if path in text and ' rw-p ' in text.splitlines()[0]
    )
    assert 'rr' in flags  # MADV_RANDOM
