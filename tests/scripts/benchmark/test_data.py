"""`fql benchmark data`: the parts that do not need a million frames."""

import numpy as np
import pytest

from data_pipeline.sample_layout import SHIFT_PAD
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.writer import write_store
from fql.settings.train_config import TrainConfig
from fql.training.training_data import LabelledSplit
from scripts.benchmark.data import compare_samplers, format_report, reference_sampler
from scripts.benchmark.sources import measure, prepare

REPORT = {
    'ms_per_batch': {'reference': 37.61, 'loader': 2.5, 'loader_without_shift': 1.5},
    'times_faster': {'reference': 1.0, 'loader': 15.04, 'loader_without_shift': 25.07},
    'bytes_to_device_ratio': 4 / 6,
    'million_frames': {
        'first_batch_s': 0.6,
        'first_batch_at_step_900000_s': 0.7,
        'anonymous_growth_mb': {1: 100.0, 1_000: 120.0, 10_000: 121.0},
    },
    'sources': {
        name: {'frames': 10, 'frames_per_second': rate, 'peak_anonymous_growth_mb': 40.0}
        for name, rate in (('prepare', 21_000), ('prepare_hdf5', 17_000), ('export', 5_400))
    },
    'training_waits_for_data_share': 0.003,
}


def test_the_table_has_what_was_measured_and_the_reference_beside_it():
    lines = [' '.join(line.split()) for line in format_report(REPORT).splitlines()]
    assert lines == [
        'measured reference',
        'host time per batch 2.5 ms 37.6 ms',
        'times faster 15.0 1',
        'without shift 1.5 ms',
        'times faster 25.1 1',
        'bytes to the device, in those of two whole stacks 0.67 1',
        'a million frames (12.3 GB): first batch 0.60 s',
        'at step 900,000 0.70 s',
        'anonymous memory after 1 batches +100 MB',
        'anonymous memory after 1,000 batches +120 MB',
        'anonymous memory after 10,000 batches +121 MB',
        'of it since 1,000 +1 MB',
        'prepare from .npz 21,000 frames/s',
        'peak of anonymous memory +40 MB',
        'prepare from HDF5 17,000 frames/s',
        'peak of anonymous memory +40 MB',
        'export to TFDS 5,400 frames/s',
        'peak of anonymous memory +40 MB',
        'share of training time that waits for data 0.30%',
    ]


@pytest.fixture
def labelled(maze_npz, tmp_path):
    split = write_store(tmp_path / 'store', 'benchmark', npz_splits(maze_npz)).splits['train']
    labels = np.arange(len(split.terminals), dtype=np.float32)
    return LabelledSplit(split, labels, -labels)


def test_the_reference_way_samples_stacks_and_shifts_half_of_the_batches(labelled):
    config = TrainConfig(task='', batch_size=8, frame_stack=3)
    sample, rng, split = (
        reference_sampler(labelled, config),
        np.random.default_rng(0),
        labelled.split,
    )
    shifted = 0
    for _ in range(8):
        batch = sample()
        rows = split.valid_rows[rng.integers(0, len(split.valid_rows), 8)]
        places = np.maximum(rows[:, None] + np.arange(-2, 2), split.first_rows[rows][:, None])
        frames = split.observations[places]
        if rng.random() < 0.5:
            shifted += 1
            pads = ((0, 0), (0, 0), (SHIFT_PAD, SHIFT_PAD), (SHIFT_PAD, SHIFT_PAD), (0, 0))
            padded = np.pad(frames, pads, 'edge')
            corners = rng.integers(0, 2 * SHIFT_PAD + 1, (8, 2))
            frames = np.stack(
                [x[:, i : i + 32, j : j + 32] for x, (i, j) in zip(padded, corners, strict=True)]
            )
        stacks = [
            np.concatenate(list(np.moveaxis(x, 1, 0)), -1) for x in (frames[:, :-1], frames[:, 1:])
        ]
        np.testing.assert_array_equal(batch['observations'], stacks[0])
        np.testing.assert_array_equal(batch['next_observations'], stacks[1])
        np.testing.assert_array_equal(batch['rewards'], rows)
    assert 0 < shifted < 8


def test_the_samplers_take_turns(labelled):
    report = compare_samplers(labelled, TrainConfig(task='', batch_size=8), rounds=2)
    assert min(report['ms_per_batch'].values()) > 0
    assert report['times_faster']['reference'] == 1


def test_work_is_measured(maze_npz, tmp_path):
    result = measure(prepare, maze_npz, tmp_path / 'store')
    store = write_store(tmp_path / 'store', 'benchmark', npz_splits(maze_npz))  # Reused: it exists.
    assert result['frames'] == len(store.splits['train'].terminals)
    assert result['frames_per_second'] > 0


def test_an_existing_file_is_kept(fql, assert_one_line, tmp_path):
    path = tmp_path / 'figures.json'
    path.write_text('mine')
    assert_one_line(fql('benchmark', 'data', '--json', path), 'exists')
    assert path.read_text() == 'mine'
