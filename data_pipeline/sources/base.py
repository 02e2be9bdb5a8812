"""What a frame store is made of: the arrays of a split in blocks of rows, checked as they pass.

Tables of rows (`table.py` here), as `.npz` files (`ogbench.py`) and HDF5 files have them, and RLDS
datasets (`rlds.py`) are such sources.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.observations import OBSERVATIONS, is_observation

REQUIRED_ARRAYS = (OBSERVATIONS, 'actions', 'terminals')
"""In place of `observations` there may be several, each `observations.NAME`."""
INFO_ARRAYS = ('qpos', 'qvel', 'button_states')
LABEL_ARRAYS = ('rewards', 'masks')
"""Of a task of the data's own: both or none."""

ACTION_TOLERANCE = 1e-3
"""How far beyond [-1, 1] an action may lie to be clipped and counted; further out is refused."""

Note = Callable[[str], None]
"""Takes a line, without a path, on what was converted, skipped or ignored."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape of one row of an array, and the type that the store gives it."""

    row_shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the store."""
        return math.prod(self.row_shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class SourceSplit:
    """One split of a source.

    Attributes:
        origin: what errors name, for instance the file.
        description: for the manifest; `sha256` in it tells the contents.
        arrays: the arrays to store, by name; all of `REQUIRED_ARRAYS`, any of `INFO_ARRAYS`,
            and `LABEL_ARRAYS`.
        rows: how many there are; a guess where `rows_are_known` is not set.
        read: gives the arrays from their first row on as (name, rows) in blocks. An array's blocks
            are in order; different arrays' may alternate in any way, but a row's terminal comes
            before its action. Calls its argument with what a user should know of the way.
        source_rows: (rows,) the source's own numbers of the rows, for errors, where they differ.
    """

    origin: str
    description: dict[str, Any]
    arrays: Mapping[str, ArraySpec]
    rows: int
    read: Callable[[Note], Iterator[tuple[str, np.ndarray]]]
    rows_are_known: bool = True
    source_rows: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in the store."""
        return self.rows * sum(spec.row_bytes for spec in self.arrays.values())

    def row_of(self, row: int) -> int:
        """The source's own number of a row."""
        return row if self.source_rows is None else int(self.source_rows[row])


def describe_file(path: Path) -> dict[str, Any]:
    """The description of a file as a source."""
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'path': str(path.resolve()), 'bytes': path.stat().st_size, 'sha256': digest}


def taken_from(description: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The description of a source of which these observations are taken, see `observation_keys`.

    What is taken of a file belongs to its identity.
    """
    if not keys:
        return dict(description)
    is_one = keys.keys() == {''}
    text = keys[''] if is_one else ' '.join(f'{name}={key}' for name, key in sorted(keys.items()))
    return {
        **description,
        'keys': {'observation': keys[''] if is_one else dict(sorted(keys.items()))},
        'sha256': hashlib.sha256(f'{description["sha256"]} {text}'.encode()).hexdigest(),
    }


def missing_arrays(names: Iterable[str]) -> list[str]:
    """Which of `REQUIRED_ARRAYS` are not among these."""
    held = {OBSERVATIONS if is_observation(name) else name for name in names}
    return [name for name in REQUIRED_ARRAYS if name not in held]


def checked_blocks(split: SourceSplit, note: Note) -> Iterator[tuple[str, np.ndarray]]:
    """The blocks of a split in the store's types, all that a store promises checked on the way.

    Actions beyond [-1, 1] by no more than `ACTION_TOLERANCE` are clipped and counted. Needs no more
    memory than a block and two bytes a row.

    Args:
        note: called with what the source has to say, and with the number of clipped actions.

    Raises:
        DataError: arrays of different lengths, terminals other than 0 and 1, no end of a
            trajectory, a last row that is not one, a trajectory of one row or of black images only,
            an action further out, a mask not within [0, 1], a number that is not finite in the
            store's type.
    """
    origin = split.origin
    clipped = 0
    rows = dict.fromkeys(split.arrays, 0)
    ends: list[np.ndarray] = []
    blank: dict[str, list[np.ndarray]] = {}
    for name, block in split.read(note):
        spec = split.arrays[name]
        if block.shape[1:] != spec.row_shape:
            raise DataError(
                f'{origin}: {name} has rows of shape {block.shape[1:]} from row {rows[name]} on, '
                f'{spec.row_shape} before'
            )
        if name == 'terminals' and not np.isin(block, (0, 1)).all():  # Which bool would hide.
            raise DataError(f'{origin}: terminals holds values other than 0 and 1')
        with np.errstate(over='ignore'):  # What is too large for the type becomes infinite.
            block = block.astype(spec.dtype, copy=False)
        _check_block(split, name, block, rows[name])
        if name == 'actions' and np.abs(block).max(initial=0) > 1:
            clipped += int(np.count_nonzero((np.abs(block) > 1).any(axis=1)))
            block = block.clip(-1, 1)
        rows[name] += len(block)
        if name == 'terminals':
            ends.append(block)
            if split.rows_are_known and rows[name] == split.rows:
                _check_lengths(origin, np.concatenate(ends))  # Before frames have been copied.
        elif is_observation(name) and block.dtype == np.uint8:
            is_blank = block.reshape(len(block), -1).max(axis=1) == 0
            blank.setdefault(name, []).append(is_blank)
        yield name, block
    if len(set(rows.values())) != 1:
        raise DataError(f'{origin}: arrays differ in length: {rows}')
    terminals = np.concatenate(ends or [np.zeros(0, bool)])
    _check_lengths(origin, terminals)
    for name, parts in blank.items():
        _check_images(split, name, terminals, np.concatenate(parts))
    if clipped:
        note(f'actions just beyond [-1, 1] were clipped in {clipped} rows')


def check_ends(origin: str, terminals: np.ndarray) -> None:
    """Checks that a whole (n,) bool array of trajectory ends has some and ends with one."""
    if not terminals.any():
        raise DataError(f'{origin}: terminals is 0 everywhere: no trajectory ends')
    if not terminals[-1]:
        raise DataError(
            f'{origin}: the last row is not the end of a trajectory; terminals must be 1 there'
        )


def _check_lengths(origin: str, terminals: np.ndarray) -> None:
    check_ends(origin, terminals)
    ends = np.flatnonzero(terminals)
    lengths = np.diff(ends, prepend=-1)
    shortest = int(np.argmin(lengths))
    if lengths[shortest] < 2:
        raise DataError(
            f'{origin}: the trajectory that ends at row {ends[shortest]} has one row; '
            'two make a transition'
        )


def _check_block(split: SourceSplit, name: str, block: np.ndarray, first_row: int) -> None:
    """Checks numbers as the store will hold them."""
    origin = split.origin
    if block.dtype.kind == 'f' and not np.isfinite(block).all():
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        row = split.row_of(first_row + int(np.argmin(finite)))
        raise DataError(f'{origin}: {name} holds values that are not finite, first in row {row}')
    if name == 'masks' and not ((block >= 0) & (block <= 1)).all():
        raise DataError(f'{origin}: masks holds values outside [0, 1]')
    if name == 'actions':
        largest = float(np.abs(block).max(initial=0))
        if largest > 1 + ACTION_TOLERANCE:
            row = split.row_of(first_row + int(np.argmax(np.abs(block).max(axis=1))))
            raise DataError(
                f'{origin}: actions reach {largest:g} in row {row}, outside [-1, 1]; '
                '--normalize-actions scales them, and what a policy does back to your units'
            )


def _check_images(split: SourceSplit, name: str, terminals: np.ndarray, blank: np.ndarray) -> None:
    """Refuses a trajectory that was never rendered; single black frames are let pass."""
    ends = np.flatnonzero(terminals)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    black = np.flatnonzero(np.logical_and.reduceat(blank, firsts))
    if len(black):
        first = black[0]
        rows = f'rows {split.row_of(firsts[first])} to {split.row_of(ends[first])}'
        of_which = '' if name == OBSERVATIONS else f' in {name}'
        raise DataError(
            f'{split.origin}: all images of trajectory {first} ({rows}) are zero{of_which}, '
            f'and so in {len(black)} of {len(ends)} trajectories; render them again'
        )
