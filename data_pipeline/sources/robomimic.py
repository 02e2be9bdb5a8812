"""HDF5 files in robomimic's layout: `data/demo_i` with obs/*, next_obs/*, actions, rewards, dones.

Every row of a demonstration is a transition. The last one ends in the last row of `next_obs`, whose
other rows must be those of `obs` that follow. If `next_obs` is not stored and `dones` is set, the
last one ends in its own observation again, whose value the mask excludes. Otherwise the last action
is not used.
Source: https://robomimic.github.io/docs/datasets/overview.html
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.observations import array_name, choose_keys
from data_pipeline.source_split import ArraySpec, Note, SourceSplit
from data_pipeline.sources.arrays import Fitted, fit_arrays
from data_pipeline.sources.hdf5 import (
    HdfColumn,
    check_written,
    list_columns,
    open_hdf5,
    open_item,
)
from data_pipeline.sources.rows import find_jumps, lost_rewards
from data_pipeline.sources.source_files import describe_file, taken_from
from data_pipeline.sources.table import settle_last_actions

_FILTERS = {'train': 'mask/train', 'val': 'mask/valid'}
_USED = {'actions', 'rewards', 'dones'}


@dataclass(frozen=True, eq=False)
class Demo:
    """One demonstration of T rows.

    Attributes:
        observations: its columns by the store's names.
        actions: a column.
        following: the next observations, by the same names, if stored.
        labels: rewards and masks (T,), or none.
    """

    observations: Mapping[str, HdfColumn]
    actions: HdfColumn
    following: Mapping[str, HdfColumn]
    labels: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """T."""
        return self.actions.shape[0]

    @property
    def ends_task(self) -> bool:
        """Whether the task ends with the last row, so that no value follows."""
        return bool(self.labels) and bool(self.labels['masks'][-1] == 0)

    @property
    def appends(self) -> bool:
        """Whether the last row is a transition, so that an observation is appended."""
        return bool(self.following) or self.ends_task

    @property
    def rows(self) -> int:
        """Number of rows in the store."""
        return self.steps + self.appends


def robomimic_splits(source: Path, keys: Mapping[str, str]) -> dict[str, SourceSplit]:
    """The split `train`, and `val` where the file's filter keys `train` and `valid` name one.

    Args:
        source: the file.
        keys: of `observation_keys`: which of `obs/*` to take; may be empty if there is only one.

    Raises:
        DataError: the file cannot be read, or an array is missing or of an unsuitable type or
            shape.
    """
    with open_hdf5(source) as file:
        items = {name: open_item(file['data'], name) for name in file['data']}
        groups = [name for name, item in items.items() if isinstance(item, h5py.Group)]
        names = {'train': sorted(groups, key=_number)}
        masks = file.get('mask')
        unused = {f'mask/{key}' for key in masks} if isinstance(masks, h5py.Group) else set()
        if all(isinstance(file.get(key), h5py.Dataset) for key in _FILTERS.values()):
            chosen = {split: _listed(source, file[key]) for split, key in _FILTERS.items()}
            names = {split: sorted(names, key=_number) for split, names in chosen.items() if names}
            unused -= set(_FILTERS.values())
        held = {name: list_columns(file['data'][name]) for name in groups}
    if not names.get('train'):
        raise DataError(f'{source}: data holds no demonstration for training')
    unknown = sorted({name for demos in names.values() for name in demos} - held.keys())
    if unknown:
        raise DataError(f'{source}: mask names {unknown[0]}, which is not in data')
    first = names['train'][0]
    keys = _find_keys(f'{source}: data/{first}', held[first], keys)
    description = taken_from(describe_file(source), keys)
    taken = {f'{group}/{key}' for key in keys.values() for group in ('obs', 'next_obs')}
    return {
        split: _split(
            f'{source}, split {split}',
            description,
            {name: _demo(f'{source}: data/{name}', held[name], keys) for name in demos},
            sorted(held[demos[0]].keys() - _USED - taken | unused),
        )
        for split, demos in names.items()
    }


def _listed(source: Path, mask: h5py.Dataset) -> list[str]:
    """The names of demonstrations in a filter key."""
    if mask.ndim != 1 or h5py.check_string_dtype(mask.dtype) is None:
        raise DataError(f'{source}: {mask.name} must list names of demonstrations')
    return list(mask.asstr('utf-8', 'replace')[()])


def _number(name: str) -> tuple[int, str]:
    digits = re.search(r'(\d+)$', name)
    return (int(digits[1]) if digits else -1, name)


def _find_keys(
    origin: str, columns: Mapping[str, HdfColumn], asked: Mapping[str, str]
) -> Mapping[str, str]:
    """The requested keys, or the only one if none is requested."""
    held = sorted(name.removeprefix('obs/') for name in columns if name.startswith('obs/'))
    keys = {name: key.removeprefix('obs/') for name, key in asked.items()}
    return choose_keys(origin, held, keys)


def _demo(origin: str, columns: Mapping[str, HdfColumn], keys: Mapping[str, str]) -> Demo:
    seen = {array_name(name): f'obs/{key}' for name, key in keys.items()}
    following = {array_name(name): f'next_obs/{key}' for name, key in keys.items()}
    if not any(key in columns for key in following.values()):
        following = {}
    needed = (*seen.values(), *following.values(), 'actions')
    for name in needed:
        if name not in columns:
            raise DataError(f'{origin} has no {name}')
    check_written(columns[name] for name in needed)
    used = (*needed, *sorted(_USED - {'actions'}))
    lengths = {n: columns[n].rows for n in used if n in columns}
    if len(set(lengths.values())) != 1:
        raise DataError(f'{origin}: arrays differ in length: {lengths}')
    labels = {}
    if lengths['actions'] and {'rewards', 'dones'} <= columns.keys():
        stored = {name: columns[name] for name in ('rewards', 'dones')}
        fitted = fit_arrays(
            origin,
            {'rewards': stored['rewards'].row, 'terminals': stored['dones'].row},
        )
        dones = fitted['terminals'].convert(stored['dones'].read())
        if not np.isin(dones, (0, 1)).all():
            raise DataError(f'{origin}: dones holds values other than 0 and 1')
        labels = {'rewards': fitted['rewards'].convert(stored['rewards'].read())}
        labels['masks'] = 1 - dones.astype(np.float32)
    return Demo(
        {name: columns[key] for name, key in seen.items()},
        columns['actions'],
        {name: columns[key] for name, key in following.items()},
        labels,
    )


def _split(
    origin: str, description: dict[str, Any], demos: Mapping[str, Demo], others: Sequence[str]
) -> SourceSplit:
    used = {name: demo for name, demo in demos.items() if demo.steps and demo.rows > 1}
    if not used:
        raise DataError(f'{origin}: no demonstration has two observations, as a transition needs')
    first = next(iter(used.values()))
    for name, demo in used.items():
        _check_alike(f'{origin}, {name}', demo, first)
    columns = {'actions': first.actions, **first.observations}
    fitted = fit_arrays(origin, {name: column.row for name, column in columns.items()})
    notes = [*_account(origin, list(used.values()), len(demos) - len(used))]
    notes += [fit.note for fit in fitted.values() if fit.note]
    if others:
        notes.append(f'ignored: {", ".join(others)}')

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        for line in notes:
            note(line)
        for demo in used.values():
            yield from _blocks(demo, fitted)

    return SourceSplit(
        origin=origin,
        description=description,
        arrays={
            'terminals': ArraySpec((), np.dtype(bool)),
            **{name: ArraySpec((), np.dtype(np.float32)) for name in first.labels},
            **{name: fit.spec for name, fit in fitted.items()},
        },
        rows=sum(demo.rows for demo in used.values()),
        read=read,
    )


def _check_alike(origin: str, demo: Demo, first: Demo) -> None:
    pairs = [(demo.actions, first.actions)]
    for columns in (demo.observations, demo.following):
        pairs += [(column, first.observations[name]) for name, column in columns.items()]
    for column, wanted in pairs:
        if column.row != wanted.row:
            raise DataError(f'{origin}: {column.key} has rows of {column.row}, not {wanted.row}')
    if demo.labels.keys() != first.labels.keys():
        raise DataError(f'{origin}: rewards and dones are in some demonstrations only')


def _account(origin: str, demos: Sequence[Demo], skipped: int) -> Iterator[str]:
    """Lines for the user on the handling of the last rows.

    Raises:
        DataError: the only rewards are in rows whose actions are not used.
    """
    if not demos[0].labels:
        yield 'without rewards and dones in every demonstration, the data have no rewards and masks'
    lost = [d for d in demos if d.labels and not d.appends and d.labels['rewards'][-1] != 0]
    rewards = [d.labels['rewards'][: None if d.appends else -1] for d in demos if d.labels]
    if repeated := sum(not demo.following and demo.ends_task for demo in demos):
        yield (
            f'the last row of {repeated:,} demonstrations is done: its next observation is that of '
            'the same row'
        )
    yield from lost_rewards(
        origin,
        len(lost),
        any(values.any() for values in rewards),
        'last rows of demonstrations',
        'Store next_obs, or set dones where the task ends',
    )
    if skipped:
        yield f'skipped demonstrations without a transition: {skipped:,}'


def _blocks(demo: Demo, fitted: Mapping[str, Fitted]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one demonstration, with the appended row."""
    terminals = np.arange(demo.rows) == demo.rows - 1
    yield 'terminals', terminals
    extra = 1 if demo.appends else 0
    for name, array in demo.labels.items():
        # The value of the appended observation is never used.
        yield name, np.pad(array, (0, extra), constant_values=float(name == 'masks'))
    actions = fitted['actions'].convert(demo.actions.read())
    actions = np.pad(actions, ((0, extra), (0, 0)))
    yield 'actions', settle_last_actions(actions, terminals)
    for name, column in demo.observations.items():
        convert = fitted[name].convert
        if name in demo.following:
            _check_following(column, demo.following[name])
        for block in column.blocks():
            yield name, convert(block)
        if demo.appends:
            yield name, convert(demo.following.get(name, column).read(-1))


def _check_following(column: HdfColumn, following: HdfColumn) -> None:
    """Raise DataError where a stored next observation is not that of the next row."""
    jumps = find_jumps(column.blocks(), following.blocks())
    if jumps.any():
        row = int(np.argmax(jumps))
        raise DataError(
            f'{column.path}: row {row} of {following.key} is not row {row + 1} of {column.key}: '
            'steps are missing there; make another demonstration of what follows'
        )
