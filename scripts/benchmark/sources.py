"""How fast, and in how much memory, a frame store is prepared and exported.

For processes of their own, so that nothing but the work is in their memory.
"""

import multiprocessing
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import Split, open_store
from data_pipeline.store.writer import write_store
from fql.training.host_memory import keep_freed_memory

POLL_SECONDS = 0.01
RUNS = 3
"""Of each kind; the median is taken, as the disk may be busy with what was written before."""


def measure_sources(split: Split, folder: Path) -> dict[str, dict[str, float]]:
    """Writes a split as an `.npz` file and measures its way to a store and on to TFDS.

    Returns:
        For `prepare` and `export`, frames per second and the peak growth of anonymous memory (MB).
    """
    source, store = folder / 'source.npz', folder / 'prepare-0'
    np.savez_compressed(source, allow_pickle=False, **split.arrays)
    spawn = multiprocessing.get_context('spawn')
    results = {}
    for name, work, origin in (('prepare', prepare, source), ('export', export, store)):
        runs = []
        for run in range(RUNS):
            target = folder / f'{name}-{run}'
            with ProcessPoolExecutor(1, spawn, initializer=keep_freed_memory) as executor:
                runs.append(executor.submit(measure, work, origin, target).result())
        results[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return results


def prepare(source: Path, target: Path) -> int:
    """Makes a store of an `.npz` file; returns its number of frames."""
    store = write_store(target, 'benchmark', npz_splits(source))
    return len(store.splits['train'].terminals)


def export(source: Path, target: Path) -> int:
    """Writes a store as a TFDS dataset; returns its number of frames."""
    from data_pipeline.tfds_builder import export_tfds

    store = open_store(source)
    export_tfds(store, target)
    return len(store.splits['train'].terminals)


def measure(work: Callable[[Path, Path], int], source: Path, target: Path) -> dict[str, float]:
    """Frames per second of `work`, and the peak growth of anonymous memory while it ran."""
    if work is export:
        import data_pipeline.tfds_builder  # noqa: F401  (its import is not part of the work)
    with watched_memory() as growth:
        began = time.perf_counter()
        frames = work(source, target)
        seconds = time.perf_counter() - began
    return {
        'frames': frames,
        'frames_per_second': round(frames / seconds),
        'peak_anonymous_growth_mb': round(max(growth), 1),
    }


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """A list that gets the growth of anonymous memory (MB) again and again while active."""
    before = anonymous_megabytes()
    growth = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            growth.append(anonymous_megabytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


def anonymous_megabytes() -> float:
    """This process's anonymous memory (RssAnon); NaN where the system does not tell."""
    status = Path('/proc/self/status')
    found = re.search(r'RssAnon:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return int(found.group(1)) / 1e3 if found else float('nan')
