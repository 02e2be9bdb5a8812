"""One split of a source, from which a store is written: blocks of rows, checked as they are read.

`data_pipeline.sources` makes them, for example of tables of rows, as in `.npz` files, or of RLDS
datasets; `data_pipeline.store.writer` writes them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.action_range import ACTION_TOLERANCE
from data_pipeline.errors import DataError
from data_pipeline.observations import is_observation

SPLIT_NAMES = {'train': ('train',), 'val': ('val', 'validation')}
"""The possible names of each split in a dataset of TFDS or LeRobot."""

Note = Callable[[str], None]
"""Receives a line, without a path, on what was converted, skipped or ignored."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape of one row of an array, and its type in the store."""

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
        origin: the source's name in errors, for instance the file.
        description: for the manifest; its `sha256` identifies the contents.
        arrays: the arrays to store, by name; all of `REQUIRED_ARRAYS`, any of `INFO_ARRAYS`,
            and `LABEL_ARRAYS`.
        rows: number of rows; an estimate where `rows_are_known` is not set.
        read: yields all arrays in blocks of rows (name, rows). An array's blocks are in order.
            Blocks of different arrays may alternate in any way, except that a row's terminal
            comes before its action. Calls its argument with lines for the user.
        source_rows: (rows,) the row numbers in the source, for errors, where they differ.
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
        """The number of a row in the source."""
        return row if self.source_rows is None else int(self.source_rows[row])


def checked_blocks(split: SourceSplit, note: Note) -> Iterator[tuple[str, np.ndarray]]:
    """The blocks of a split in the store's types, with all guarantees of a store checked.

    Actions beyond [-1, 1] by no more than `ACTION_TOLERANCE` are clipped and counted. Needs memory
    for one block and two bytes a row.

    Args:
        note: called with the lines of the source, and with the numbers of clipped actions and of
            trajectories that are black in one of several arrays of images.

    Raises:
        DataError: arrays of different lengths, terminals other than 0 and 1, no end of a
            trajectory, a last row that does not end one, a trajectory of one row or of only black
            images, an array of images that is black in most, an action further out, a mask outside
            [0, 1], a number that is not finite in the store's type.
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
        if name == 'terminals' and not np.isin(block, (0, 1)).all():  # bool would hide these.
            raise DataError(f'{origin}: terminals holds values other than 0 and 1')
        with np.errstate(over='ignore'):  # Numbers too large for the type become infinite.
            block = block.astype(spec.dtype, copy=False)
        _check_block(split, name, block, rows[name])
        if name == 'actions' and np.abs(block).max(initial=0) > 1:
            clipped += int(np.count_nonzero((np.abs(block) > 1).any(axis=1)))
            block = block.clip(-1, 1)
        rows[name] += len(block)
        if name == 'terminals':
            ends.append(block)
            if split.rows_are_known and rows[name] == split.rows:
                _check_lengths(origin, np.concatenate(ends))  # Fails before frames are copied.
        elif is_observation(name) and block.dtype == np.uint8:
            is_blank = block.reshape(len(block), -1).max(axis=1) == 0
            blank.setdefault(name, []).append(is_blank)
        yield name, block
    if len(set(rows.values())) != 1:
        raise DataError(f'{origin}: arrays differ in length: {rows}')
    terminals = np.concatenate(ends or [np.zeros(0, bool)])
    _check_lengths(origin, terminals)
    images = {name: np.concatenate(parts) for name, parts in blank.items()}
    _check_images(split, terminals, images, note)
    if clipped:
        note(f'actions just beyond [-1, 1] were clipped in {clipped} rows')


def check_ends(origin: str, terminals: np.ndarray) -> None:
    """Check that a complete (n,) bool array of trajectory ends has some and ends with one."""
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
            'it must have at least two'
        )


def _check_block(split: SourceSplit, name: str, block: np.ndarray, first_row: int) -> None:
    """Check numbers as the store will hold them."""
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
                'scale them with --normalize-actions (a policy still acts in your units)'
            )


def _check_images(
    split: SourceSplit, terminals: np.ndarray, blank: Mapping[str, np.ndarray], note: Note
) -> None:
    """Refuse images that were never rendered; single black frames are accepted.

    These are trajectories without any picture, and an array that has none in most trajectories. Of
    several arrays, one may be black in a trajectory, as that of a camera that was covered.

    Args:
        blank: whether an image is black, (n,) bool, of each array of images.
        note: called with the number of such trajectories.
    """
    ends = np.flatnonzero(terminals)
    firsts = np.concatenate([[0], ends[:-1] + 1])

    def refuse(black: np.ndarray, place: str, remedy: str) -> None:
        first = int(np.argmax(black))
        rows = f'rows {split.row_of(firsts[first])} to {split.row_of(ends[first])}'
        raise DataError(
            f'{split.origin}: all images of trajectory {first} ({rows}) are zero{place}, '
            f'the same in {black.sum()} of {len(ends)} trajectories; {remedy}'
        )

    found = {name: np.logical_and.reduceat(rows, firsts) for name, rows in blank.items()}
    if found and (black := np.logical_and.reduce(list(found.values()))).any():
        refuse(black, '', 'render them again')
    for name, black in found.items():
        if black.mean() > 0.5:
            refuse(black, f' in {name}', 'render them again, or leave this array out')
        if black.any():
            note(f'{name}: all images of {black.sum()} of {len(ends)} trajectories are zero')
