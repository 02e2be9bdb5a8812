"""`fql benchmark data`: its parts that need no million frames."""

from pathlib import Path

import pytest

from data_pipeline.frame_store import prepare_store
from scripts.benchmark_data import format_report
from scripts.benchmark_sources import measure, prepare, watched_memory

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
        for name, rate in (('prepare', 21_000), ('export', 5_400))
    },
    'training_waits_for_data_share': 0.003,
}


def test_the_table_has_every_figure():
    lines = [line.split() for line in format_report(REPORT).splitlines()]
    found = {' '.join(line) for line in lines}
    for text in (
        'loader, times less 15.0 >= 15',
        'loader without shift, times less 25.1 >= 25',
        'bytes to the device, against two whole stacks 0.67 <= 0.67',
        'at step 900,000 0.70 s < 1 s',
        'anonymous memory after 10,000 batches +121 MB < 150 MB',
        'of it since 1,000 +1 MB 0 MB',
        'prepare from .npz 21,000 frames/s >= 20,000',
        'export to TFDS 5,400 frames/s >= 5,000',
        'share of training time that waits for data 0.30% < 1 %',
    ):
        assert text in found


def test_work_is_measured(maze_npz, tmp_path):
    result = measure(prepare, maze_npz, tmp_path / 'store')
    store = prepare_store(tmp_path / 'store', 'benchmark', maze_npz)  # Is there: not made again.
    assert result['frames'] == len(store.splits['train'].terminals)
    assert result['frames_per_second'] > 0


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/self/status')
def test_memory_is_watched():
    size = 80_000_000
    with watched_memory() as growth:
        block = bytearray(size)
        while len(growth) < 3:
            block[::4096] = bytes(len(block[::4096]))
        del block
    assert max(growth) > 0.9 * size / 1e6


def test_an_existing_file_is_kept(fql, assert_one_line, tmp_path):
    path = tmp_path / 'figures.json'
    path.write_text('mine')
    assert_one_line(fql('benchmark', 'data', '--json', path), 'exists')
    assert path.read_text() == 'mine'
