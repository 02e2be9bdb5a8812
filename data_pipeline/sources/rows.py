"""The rows of a store, in which every row except a trajectory's last is a transition.

A store keeps an observation once: the transition of row t ends in row t + 1, and the action of a
trajectory's last row is not used. Where a source's last row is a transition too, its next
observation is appended as a separate row.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import DataError

_SAME_OBSERVATION = 1e-6
"""Observations up to this distance are equal; users of D4RL use the same limit."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a store, by rows of its source.

    Attributes:
        source: (m,) int64, never decreasing: the row of the source that a row is copied from.
        terminals: (m,) bool: the last row of each trajectory.
        is_appended: (m,) bool: rows that hold the observation after a transition.
        skipped: trajectories that had no transition.
    """

    source: np.ndarray
    terminals: np.ndarray
    is_appended: np.ndarray
    skipped: int


def lay_out(ends: np.ndarray, kept: np.ndarray, offset: int = 0) -> Rows:
    """The rows of a store.

    Args:
        ends: (n,) bool: the last row of each trajectory of the source; the last of all is one.
        kept: (n,) bool: which of the ends are transitions.
        offset: 0 or 1: the row appended after row i is copied from row i + offset of the source.
    """
    after = np.flatnonzero(ends & kept)  # Appended rows come after these.
    source = np.insert(np.arange(len(ends)), after + 1, after + offset)
    is_appended = np.zeros(len(source), bool)
    is_appended[after + 1 + np.arange(len(after))] = True
    terminals = is_appended | (ends & ~kept)[source]
    lengths = np.diff(np.flatnonzero(terminals), prepend=-1)
    skipped = int(np.count_nonzero(lengths == 1))
    if skipped:
        has_transition = np.repeat(lengths > 1, lengths)
        source, terminals, is_appended = (
            array[has_transition] for array in (source, terminals, is_appended)
        )
    return Rows(source, terminals, is_appended, skipped)


def select_rows(blocks: Iterable[np.ndarray], rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows `rows`, which never decrease, of the array in `blocks`, block by block."""
    first = 0
    for block in blocks:
        wanted = _within(rows, first, len(block))
        if len(wanted) == len(block) and np.array_equal(wanted, np.arange(len(block))):
            yield block
        elif len(wanted):
            yield block[wanted]
        first += len(block)


def select_observations(
    observations: Iterable[np.ndarray], following: Iterable[np.ndarray], rows: Rows
) -> Iterator[np.ndarray]:
    """`select_rows` of observations; appended rows come from `following`, with equal blocks."""
    first = 0
    for block, after in zip(observations, following, strict=True):
        start, stop = np.searchsorted(rows.source, (first, first + len(block)))
        wanted = rows.source[start:stop] - first
        chosen = block[wanted]
        appended = rows.is_appended[start:stop]
        chosen[appended] = after[wanted[appended]]
        if len(chosen):
            yield chosen
        first += len(block)


def find_jumps(observations: Iterable[np.ndarray], following: Iterable[np.ndarray]) -> np.ndarray:
    """(n,) bool: rows whose following observation is not the next row's; False for the last row."""
    jumps = []
    last = None
    for block, after in zip(observations, following, strict=True):
        if last is not None:
            jumps.append(_differ(last, block[:1]))
        jumps.append(_differ(after[:-1], block[1:]))
        last = after[-1:]
    return np.concatenate([*jumps, np.zeros(1, bool)])


def lost_rewards(origin: str, lost: int, are_others: bool, rows: str, remedy: str) -> list[str]:
    """A line for the user if rows have rewards whose actions are not used.

    Args:
        lost: how many.
        are_others: whether other rows have rewards.
        rows: which rows these are, such as 'last rows of episodes'.
        remedy: what to do where no others have.

    Raises:
        DataError: only such rows have rewards.
    """
    if not lost:
        return []
    if not are_others:
        raise DataError(
            f'{origin}: the only rewards are in the {rows}, which are no transitions. {remedy}'
        )
    return [f'the rewards of {lost:,} {rows} are not used, as no observation follows them']


def _within(rows: np.ndarray, first: int, count: int) -> np.ndarray:
    """The sorted row numbers that lie in a block, relative to its start."""
    start, stop = np.searchsorted(rows, (first, first + count))
    return rows[start:stop] - first


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = a.astype(np.float32) - b.astype(np.float32)
    distances = np.linalg.norm(difference.reshape(len(a), math.prod(a.shape[1:])), axis=1)
    # Numbers that are not finite differ.
    return ~(distances <= _SAME_OBSERVATION)
