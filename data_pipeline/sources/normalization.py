"""Sources with actions scaled from their range to [-1, 1]."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from data_pipeline.action_range import ActionRange
from data_pipeline.errors import DataError
from data_pipeline.source_split import Note, SourceSplit
from data_pipeline.sources.table import settle_last_actions


def normalize_actions(splits: Mapping[str, SourceSplit]) -> dict[str, SourceSplit]:
    """The same splits with actions in [-1, 1]; each dimension has one range in all splits.

    Reads the sources up to their last actions to find it. The manifest's `sources` get the range as
    `action_range`, with `low` and `high`.

    Raises:
        DataError: an action is not finite, or actions have been scaled already; see also
            `SourceSplit.read`.
    """
    for split in splits.values():
        if 'action_range' in split.description:
            raise DataError(
                f'{split.origin}: its actions are scaled already, and their range is known; leave '
                'out --normalize-actions'
            )
    ranges = [_range_of(split) for split in splits.values()]
    low = np.minimum.reduce([low for low, _ in ranges])
    high = np.maximum.reduce([high for _, high in ranges])
    action_range = ActionRange(tuple(low.tolist()), tuple(high.tolist()))
    return {name: _normalized(split, action_range) for name, split in splits.items()}


def _range_of(split: SourceSplit) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest of each dimension, over the actions of transitions."""
    least, largest, seen = np.inf, -np.inf, 0
    for name, block, ends in _with_ends(split, lambda line: None):
        if name != 'actions':
            continue
        used = block[~ends].astype(np.float64)
        finite = np.isfinite(used).all(axis=1)
        if not finite.all():
            row = split.row_of(seen + int(np.flatnonzero(~ends)[np.argmin(finite)]))
            raise DataError(
                f'{split.origin}: actions holds values that are not finite, first in row {row}'
            )
        if len(used):
            least, largest = np.minimum(least, used.min(0)), np.maximum(largest, used.max(0))
        seen += len(block)
        if split.rows_are_known and seen == split.rows:
            break  # Skips the frames, if they come last.
    return np.asarray(least), np.asarray(largest)


def _normalized(split: SourceSplit, action_range: ActionRange) -> SourceSplit:
    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        note(
            'actions are scaled to [-1, 1], by dimension from '
            f'{", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)}'
        )
        for name, block, ends in _with_ends(split, note):
            if name == 'actions':
                block = settle_last_actions(action_range.to_unit(block), ends)
            yield name, block

    pairs = list(zip(action_range.low, action_range.high, strict=True))
    digest = hashlib.sha256(f'{split.description["sha256"]} normalized'.encode()).hexdigest()
    description = {
        **split.description,
        'sha256': digest,
        'action_range': action_range.json,
    }
    return dataclasses.replace(split, description=description, read=read)


def _with_ends(split: SourceSplit, note: Note) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The blocks of a split; for those of actions, also which rows end a trajectory.

    Raises:
        DataError: it is not known which rows end one, as actions have more rows, or come first.
    """
    ends = np.zeros(0, bool)
    for name, block in split.read(note):
        if name == 'terminals':
            ends = np.concatenate([ends, block.astype(bool)])
        rows = len(block) if name == 'actions' else 0
        if rows > len(ends):
            raise DataError(f'{split.origin}: actions has more rows than terminals')
        yield name, block, ends[:rows]
        ends = ends[rows:]
