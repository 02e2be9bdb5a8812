"""How fast, and in how much memory, a frame store is prepared and exported.

To be run in separate processes, so that only the work is in their memory.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.frame_store import FrameStore, Split, open_store
from data_pipeline.store.writer import write_store
from fql.training.host_memory import keep_freed_memory
from scripts.benchmark.memory import watched_memory

RUNS = 3
"""Runs of each kind; the median is taken, as the disk may be busy with earlier writes."""


def measure_sources(split: Split, folder: Path) -> dict[str, dict[str, float]]:
    """Write a split as files and measure the way from each to a store and on to TFDS.

    Returns:
        For `prepare` from `.npz`, `prepare_hdf5` (arrays that are not compressed) and `export`,
        frames per second and the peak growth of anonymous memory (MB).
    """
    source, rows, store = folder / 'source.npz', folder / 'source.hdf5', folder / 'prepare-0'
    np.savez_compressed(source, allow_pickle=False, **split.arrays)
    with h5py.File(rows, 'w') as file:
        for name, array in split.arrays.items():
            file[name] = array
    spawn = multiprocessing.get_context('spawn')
    results = {}
    for name, work, origin in (
        ('prepare', prepare, source),
        ('prepare_hdf5', prepare, rows),
        ('export', export, store),
    ):
        runs = []
        for run in range(RUNS):
            with ProcessPoolExecutor(1, spawn, initializer=keep_freed_memory) as executor:
                target = folder / f'{name}-{run}'
                runs.append(executor.submit(measure, work, origin, target).result())
        results[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return results


def prepare(source: Path, target: Path) -> FrameStore:
    """Make a store of a file."""
    return write_store(target, 'benchmark', file_splits(source, 'benchmark'))


def export(source: Path, target: Path) -> FrameStore:
    """Write a store as a TFDS dataset."""
    from data_pipeline.tfds_builder import export_tfds

    export_tfds(open_store(source), target)
    return open_store(source)


def measure(
    work: Callable[[Path, Path], FrameStore], source: Path, target: Path
) -> dict[str, float]:
    """Frames per second of `work`, and the peak growth of anonymous memory while it ran."""
    if work is export:
        import data_pipeline.tfds_builder  # noqa: F401  (its import is not part of the work)
    with watched_memory() as growth:
        began = time.perf_counter()
        frames = len(work(source, target).splits['train'].terminals)
        seconds = time.perf_counter() - began
    return {
        'frames': frames,
        'frames_per_second': round(frames / seconds),
        'peak_anonymous_growth_mb': round(max(growth), 1),
    }
