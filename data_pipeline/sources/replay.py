"""The replay of an online phase as the source of a frame store: all its streams in sequence.

The store's rewards and masks are those of the environment. If the run's data have a range of
actions, the store has it too.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.replay import RECORD
from data_pipeline.replay_store import open_replay, verify_replay
from data_pipeline.source_split import ArraySpec, Note, SourceSplit

_BLOCK_ROWS = 1_024


def replay_splits(path: Path) -> dict[str, SourceSplit]:
    """The `train` split of a replay; of an unfinished episode, the steps so far.

    Raises:
        DataError: it is damaged, or holds no transition.
    """
    store = open_replay(path)
    streams = list(store.splits.values())
    verify_replay(path)
    rows = sum(len(stream.terminals) for stream in streams)
    # See `SourceSplit.read` for the order.
    first = streams[0].arrays
    names = sorted(first, key=lambda name: name != 'terminals')
    arrays = {name: ArraySpec(first[name].shape[1:], first[name].dtype) for name in names}
    description: dict[str, Any] = {
        'path': str(path.resolve()),
        'bytes': rows * sum(spec.row_bytes for spec in arrays.values()),
        # The record has the checksums of all rows.
        'sha256': hashlib.sha256((path / RECORD).read_bytes()).hexdigest(),
    }
    if scaled := next(iter(store.manifest.sources.values())).get('action_range'):
        description['action_range'] = scaled

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        del note
        for stream in streams:
            for start in range(0, len(stream.terminals), _BLOCK_ROWS):
                for name in names:
                    yield name, np.asarray(stream.arrays[name][start : start + _BLOCK_ROWS])

    return {'train': SourceSplit(str(path), description, arrays, rows, read)}
