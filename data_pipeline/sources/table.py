"""Tables of rows, one array per column, as sources of frame stores.

There are two layouts. In OGBench's, `terminals` marks the last row of each trajectory, whose action
is not used. In D4RL's, every row is a transition, `terminals` marks those that end the task, and
trajectories end there, at `timeouts`, and where a stored following observation is not the next
row's.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_pipeline.array_names import INFO_ARRAYS, LABEL_ARRAYS, REQUIRED_ARRAYS, missing_arrays
from data_pipeline.errors import DataError
from data_pipeline.observations import OBSERVATIONS, array_name, is_observation
from data_pipeline.source_split import ArraySpec, Note, SourceSplit, check_ends
from data_pipeline.sources.arrays import TIMEOUT_ARRAYS, Fitted, fit_arrays
from data_pipeline.sources.rows import (
    Rows,
    find_jumps,
    lay_out,
    lost_rewards,
    select_observations,
    select_rows,
)

_NEXT = 'next_'
FOLLOWING = f'{_NEXT}{OBSERVATIONS}'
TABLE_ARRAYS = (*REQUIRED_ARRAYS, *INFO_ARRAYS, *LABEL_ARRAYS, *TIMEOUT_ARRAYS, FOLLOWING)
_FLAGS = ('terminals', *TIMEOUT_ARRAYS, *LABEL_ARRAYS)


def table_columns(origin: str, held: Collection[str], keys: Mapping[str, str]) -> dict[str, str]:
    """The file's names of the table's columns, by the table's names.

    Args:
        held: the names of all columns in the file.
        keys: of `observation_keys`; empty for `observations`. `next_KEY` follows KEY.

    Raises:
        DataError: the file lacks a key.
    """
    for key in keys.values():
        if key not in held:
            listed = ', '.join(sorted(held)) or 'nothing'
            raise DataError(f'{origin}: no observation {key!r}; it holds {listed}')
    names = {name: name for name in TABLE_ARRAYS}
    if keys:
        del names[OBSERVATIONS], names[FOLLOWING]
    for name, key in keys.items():
        names |= {array_name(name): key, f'{_NEXT}{array_name(name)}': f'{_NEXT}{key}'}
    return {name: key for name, key in names.items() if key in held}


class Column(Protocol):
    """One array of a file, as its header describes it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """The rows in order, in blocks of a few MiB; arrays of equal shape have equal blocks."""


@dataclass(frozen=True, eq=False)
class Flags:
    """Flags of trajectories' ends and of transitions; each (n,) or absent.

    `jumps` are rows whose stored following observation is not the next row's.
    """

    terminals: np.ndarray
    timeouts: np.ndarray | None = None
    jumps: np.ndarray | None = None
    rewards: np.ndarray | None = None
    masks: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class TableLayout:
    """The rows of a store, the source's labels (n,) if it has both, and lines for the user."""

    rows: Rows
    labels: dict[str, np.ndarray]
    notes: tuple[str, ...]


def lay_out_table(origin: str, flags: Flags) -> TableLayout:
    """The rows of a store and its labels, by interpreting a table's flags.

    With `timeouts` the layout is D4RL's, and masks default to 1 - terminals. Without, it is
    OGBench's, unless trajectories' last rows have rewards and masks of 0: then every row is a
    transition. The next observation of a kept last row is its stored one or, without one, its
    observation again, whose value a mask of 0 excludes.

    Raises:
        DataError: trajectories do not end, or the only rewards are in rows whose actions are not
            used.
    """
    notes = []
    ends = flags.terminals.copy()
    masks = flags.masks
    if flags.timeouts is not None:
        ends |= flags.timeouts
        if masks is None:
            masks = 1 - flags.terminals.astype(np.float32)
    if flags.jumps is not None:
        ends |= flags.jumps
    if flags.timeouts is None and flags.jumps is None:
        check_ends(origin, ends)
    ends[-1] = True
    labels = {}
    if flags.rewards is not None and masks is not None:
        labels = {'rewards': flags.rewards, 'masks': masks}
    elif flags.rewards is not None or flags.masks is not None:
        one, other = ('rewards', 'masks') if flags.masks is None else ('masks', 'rewards')
        notes.append(
            f'{one} are ignored, as there are no {other}; --task own needs both; masks are 0 where '
            'the task is complete, else 1'
        )

    kept = _kept_ends(flags, ends, masks)
    if flags.timeouts is not None:
        notes.append(
            f'trajectories end at terminals ({np.count_nonzero(flags.terminals):,} rows) and at '
            f'timeouts ({np.count_nonzero(flags.timeouts):,})'
        )
    if kept.any():
        following = 'stored after it' if flags.jumps is not None else 'of the same row'
        notes.append(
            f'the last row of {np.count_nonzero(kept):,} trajectories is a transition too, with '
            f'its reward; its next observation is the one {following}'
        )
    if labels:
        rewards, lost = labels['rewards'], ends & ~kept
        notes += lost_rewards(
            origin,
            int(np.count_nonzero(rewards[lost & np.isfinite(rewards)])),
            bool(rewards[~lost].any()),
            'last rows of trajectories',
            'If the task ends there, set masks to 0 in these rows. If not, store each reward in '
            'the row of the action that earned it',
        )
        notes += _inverted_masks(labels['masks'][~ends | kept])
    return TableLayout(lay_out(ends, kept), labels, tuple(notes))


def _kept_ends(flags: Flags, ends: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """(n,) bool: which of the last rows of trajectories are transitions."""
    done = ends & (masks == 0) if masks is not None else np.zeros_like(ends)
    if flags.jumps is not None:
        # At an end, a following observation that is the next row's belongs to another trajectory.
        # The very last row has no next row, and is treated like the other ends.
        is_own = np.append(flags.jumps[:-1], flags.jumps[:-1][ends[:-1]].all())
        return ends & (is_own | done)
    if flags.timeouts is not None:
        return done & ~flags.timeouts if flags.masks is None else done
    has_rewards = flags.rewards is not None and np.any(flags.rewards[done] != 0)
    return done if has_rewards else np.zeros_like(ends)


def _inverted_masks(masks: np.ndarray) -> list[str]:
    """A line for the user if most transitions complete the task, as where masks are flags of ends.

    Args:
        masks: those of the transitions.
    """
    count = np.count_nonzero(masks == 0)
    if 2 * count <= len(masks):
        return []
    return [
        f'masks are 0 in {count:,} of {len(masks):,} transitions, whose values are then only their '
        'rewards; are they the wrong way round? A mask is 0 where the task is complete, else 1'
    ]


def table_split(
    origin: str,
    description: dict[str, Any],
    table: Mapping[str, Column],
    others: Iterable[str],
    find_layout: Callable[[str, Flags], TableLayout] = lay_out_table,
) -> SourceSplit:
    """A split made from a table.

    Args:
        origin: the source's name in errors.
        description: see `SourceSplit`.
        table: the columns that a store takes, `timeouts` or `truncations`, and `next_observations`,
            or `next_observations.NAME` for each of several.
        others: the names of all other columns, which are ignored.
        find_layout: returns the rows of the store.

    Raises:
        DataError: a column is missing, or of a wrong length, type or shape, or `find_layout`
            raises it.
    """
    _check_lengths(origin, table, others)
    following = _find_following(origin, table)
    fitted = fit_arrays(
        origin,
        {
            name: (column.shape[1:], column.dtype)
            for name, column in table.items()
            if not name.startswith(FOLLOWING)
        },
    )
    layout = find_layout(origin, _read_flags(origin, table, fitted, following))
    rows = layout.rows
    if not len(rows.source):
        raise DataError(f'{origin}: no trajectory has two rows, as a transition needs')
    notes = [array.note for array in fitted.values() if array.note]
    notes += layout.notes
    if rows.skipped:
        notes.append(f'skipped trajectories of one row: {rows.skipped:,}')
    if ignored := sorted(others):
        notes.append(f'ignored: {", ".join(ignored)}')
    # Observations last: the other arrays reveal most faults, and are read quickly.
    streamed = {
        name: fitted[name] for name in sorted(fitted, key=is_observation) if name not in _FLAGS
    }

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        for line in notes:
            note(line)
        yield 'terminals', rows.terminals
        for name, array in layout.labels.items():
            yield name, _labels(name, array, rows)
        for name, fit in streamed.items():
            for block in _stored_blocks(name, table[name], following.get(name), fit, rows):
                yield name, block

    return SourceSplit(
        origin=origin,
        description=description,
        arrays={
            'terminals': ArraySpec((), np.dtype(bool)),
            **{name: ArraySpec((), np.dtype(np.float32)) for name in layout.labels},
            **{name: fit.spec for name, fit in streamed.items()},
        },
        rows=len(rows.source),
        read=read,
        source_rows=rows.source,
    )


def _check_lengths(origin: str, table: Mapping[str, Column], others: Iterable[str]) -> None:
    """Raise DataError if a column is missing, empty, or of another length than the others."""
    if missing := missing_arrays(table):
        held = ', '.join(sorted({*table, *others})[:10]) or 'nothing'
        raise DataError(f'{origin}: has no {", ".join(missing)}; it has {held}')
    lengths = {name: column.shape[0] if column.shape else 0 for name, column in table.items()}
    if 0 in lengths.values():
        raise DataError(f'{origin}: an array is empty: {lengths}')
    if len(set(lengths.values())) != 1:
        raise DataError(f'{origin}: arrays differ in length: {lengths}')


def _stored_blocks(
    name: str, column: Column, following: Column | None, fitted: Fitted, rows: Rows
) -> Iterator[np.ndarray]:
    """The store's rows of a column, in the store's shape, block by block.

    Args:
        following: of observations, the column of those that follow them, if there is one.
    """
    if following is not None:
        blocks = select_observations(column.blocks(), following.blocks(), rows)
    else:
        blocks = select_rows(column.blocks(), rows.source)
    first = 0
    for block in blocks:
        ends = rows.terminals[first : first + len(block)]
        first += len(block)
        block = fitted.convert(block)
        yield settle_last_actions(block, ends) if name == 'actions' else block


def _finite_blocks(origin: str, name: str, column: Column) -> Iterator[np.ndarray]:
    """The blocks of a column; raises DataError at a number that is not finite."""
    for block in column.blocks():
        if block.dtype.kind == 'f' and not np.isfinite(block).all():
            raise DataError(f'{origin}: {name} holds values that are not finite')
        yield block


def _find_following(origin: str, table: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of following observations, by the observation that they follow; all or none."""
    seen = {name: column for name, column in table.items() if is_observation(name)}
    following = {name: table[f'{_NEXT}{name}'] for name in seen if f'{_NEXT}{name}' in table}
    for name, column in following.items():
        if (column.shape, column.dtype) != (seen[name].shape, seen[name].dtype):
            raise DataError(
                f'{origin}: {_NEXT}{name} is {column.dtype} {column.shape}, '
                f'{name} is {seen[name].dtype} {seen[name].shape}'
            )
    if following and (without := sorted(seen.keys() - following.keys())):
        raise DataError(
            f'{origin}: has next observations of {", ".join(sorted(following))}, but not of '
            f'{", ".join(without)}'
        )
    return following


def _find_jumps(
    origin: str, table: Mapping[str, Column], following: Mapping[str, Column]
) -> np.ndarray:
    """(n,) bool: rows with a following observation that is not the next row's."""
    return np.logical_or.reduce(
        [
            find_jumps(table[name].blocks(), _finite_blocks(origin, f'{_NEXT}{name}', column))
            for name, column in following.items()
        ]
    )


def _read_flags(
    origin: str,
    table: Mapping[str, Column],
    fitted: Mapping[str, Fitted],
    following: Mapping[str, Column],
) -> Flags:
    """The flags of a table, whose following observations are `following`."""
    flags = {
        name: _read_numbers(origin, name, table[name], fitted[name])
        for name in _FLAGS
        if name in table
    }
    timeouts = [flags[name] for name in TIMEOUT_ARRAYS if name in flags]
    return Flags(
        terminals=flags['terminals'],
        timeouts=np.logical_or.reduce(timeouts) if timeouts else None,
        jumps=_find_jumps(origin, table, following) if following else None,
        rewards=flags.get('rewards'),
        masks=flags.get('masks'),
    )


def _read_numbers(origin: str, name: str, column: Column, fitted: Fitted) -> np.ndarray:
    """A column of one number per row, (n,), in the store's type."""
    array = np.empty(column.shape[0], fitted.spec.dtype)
    first = 0
    for block in column.blocks():
        numbers = fitted.convert(block)
        if array.dtype == bool and not ((numbers == 0) | (numbers == 1)).all():
            raise DataError(f'{origin}: {name} holds values other than 0 and 1')
        with np.errstate(over='ignore'):  # Numbers too large become infinite, and are refused.
            array[first : first + len(block)] = numbers
        first += len(block)
    return array


def settle_last_actions(actions: np.ndarray, terminals: np.ndarray) -> np.ndarray:
    """Actions (n, a), set to 0 in last rows where they are not within [-1, 1].

    The actions of last rows were never executed and may hold anything; valid ones are kept.
    """
    ends = np.flatnonzero(terminals)
    unfit = ends[~(np.abs(actions[ends]) <= 1).all(axis=1)]
    if len(unfit):
        actions = actions.copy()
        actions[unfit] = 0
    return actions


def _labels(name: str, array: np.ndarray, rows: Rows) -> np.ndarray:
    """Rewards or masks of the store's rows; last rows without a stored number get a neutral one."""
    neutral = 0 if name == 'rewards' else 1
    chosen = array[rows.source]
    unknown = rows.is_appended | (rows.terminals & ~np.isfinite(chosen))
    return np.where(unknown, neutral, chosen)
