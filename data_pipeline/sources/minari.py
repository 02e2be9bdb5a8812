"""HDF5 files of Minari datasets: `episode_i` with observations, actions, rewards, terminations.

An episode of T steps has T + 1 observations, in one array or, for a `Dict` space, in an array
`observations/KEY` each. Every step is a transition. Masks are 1 - terminations.
Source: https://minari.farama.org/content/dataset_standards/
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from data_pipeline.errors import DataError, first_line
from data_pipeline.observations import OBSERVATIONS, array_name, choose_keys
from data_pipeline.source_split import Note, SourceSplit
from data_pipeline.sources.arrays import Fitted, fit_arrays
from data_pipeline.sources.hdf5 import (
    HdfColumn,
    check_written,
    list_columns,
    open_hdf5,
    open_item,
)
from data_pipeline.sources.source_files import describe_file, taken_from

FILE = 'main_data.hdf5'
_EPISODE = re.compile(r'episode_(\d+)')
_STEPS = ('actions', 'rewards', 'terminations')
_LABELS = ('rewards', 'terminations')
_PASSED = ('truncations', 'infos')

Columns = Mapping[str, HdfColumn]


def download_minari(name: str) -> Path:
    """The file of a dataset known to Minari's library, downloaded if necessary.

    Raises:
        DataError: the library is not installed, has no such dataset, or stores it in another form.
    """
    try:
        import minari
    except ImportError as error:
        raise DataError(
            f"{name}: needs Minari: pip install 'fql-pixels[minari]', or name the dataset's {FILE} "
            'with --source'
        ) from error
    try:
        folder = Path(minari.load_dataset(name, download=True).storage.data_path)
    except Exception as error:  # The library and the network may raise anything.
        reason = first_line(error)
        raise DataError(f'{name}: Minari cannot load it: {reason}') from error
    if not (folder / FILE).exists():
        raise DataError(f'{name}: Minari stores it in another format than HDF5, in {folder}')
    return folder / FILE


def is_minari(file: h5py.File) -> bool:
    """Whether an open file is one of Minari's."""
    return any(_EPISODE.fullmatch(name) for name in file)


def minari_splits(source: Path, keys: Mapping[str, str]) -> dict[str, SourceSplit]:
    """The `train` split of a Minari file.

    Args:
        source: the file.
        keys: of `observation_keys`: which of `observations/*` to take; may be empty if there is
            only one.

    Raises:
        DataError: the file cannot be read, or an array is missing or of an unsuitable type or
            shape.
    """
    with open_hdf5(source) as file:
        names = sorted(filter(_EPISODE.fullmatch, file), key=lambda name: int(name[8:]))
        held = {name: _columns(file, name) for name in names}
    keys = _find_keys(source, held[names[0]], keys)
    episodes = {}
    for name, columns in held.items():
        episode = _episode(f'{source}: {name}', columns, keys)
        if episode['actions'].rows:
            episodes[name] = episode
    if not episodes:
        raise DataError(f'{source}: every episode is empty')
    first = next(iter(episodes.values()))
    for name, episode in episodes.items():
        for array, column in episode.items():
            if column.row != first[array].row:
                raise DataError(
                    f'{source}: {name}: {array} has rows of {column.row}, not {first[array].row}'
                )
    arrays = {name: column.row for name, column in first.items()}
    arrays['terminals'] = arrays.pop('terminations')
    arrays['masks'] = ((), np.dtype(np.float32))
    fitted = fit_arrays(str(source), arrays)
    known = {*_STEPS, *_PASSED, *keys.values()}
    others = sorted(
        {
            name if name.startswith(f'{OBSERVATIONS}/') else name.partition('/')[0]
            for name in held[names[0]]
        }
        - known
    )

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        for episode in episodes.values():
            yield from _blocks(str(source), episode, fitted)
        for fit in fitted.values():
            if fit.note:
                note(fit.note)
        note('masks are 1 - terminations')
        if len(episodes) < len(held):
            note(f'skipped episodes without a step: {len(held) - len(episodes):,}')
        if others:
            note(f'ignored: {", ".join(others)}')

    return {
        'train': SourceSplit(
            origin=str(source),
            description=taken_from(
                describe_file(source), {} if keys == {'': OBSERVATIONS} else keys
            ),
            arrays={name: fit.spec for name, fit in fitted.items()},
            rows=sum(episode['actions'].shape[0] + 1 for episode in episodes.values()),
            read=read,
        )
    }


def _columns(file: h5py.File, name: str) -> Columns:
    group = open_item(file, name)
    if not isinstance(group, h5py.Group):
        raise DataError(f'{file.filename}: {name} is not a group, as an episode is')
    return list_columns(group)


def _find_keys(source: Path, columns: Columns, asked: Mapping[str, str]) -> Mapping[str, str]:
    """The requested datasets, or the only one if none is requested."""
    held = sorted(name for name in columns if name.partition('/')[0] == OBSERVATIONS)
    keys = {name: key if key in held else f'{OBSERVATIONS}/{key}' for name, key in asked.items()}
    return choose_keys(source, held, keys)


def _episode(origin: str, columns: Columns, keys: Mapping[str, str]) -> dict[str, HdfColumn]:
    """The columns of an episode by the store's names, terminations unchanged."""
    names = {name: name for name in _STEPS}
    names |= {array_name(name): key for name, key in sorted(keys.items())}
    for key in names.values():
        if key not in columns:
            parts = ', '.join(sorted(held for held in columns if held.startswith(f'{key}/')))
            several = f'is several arrays, {parts}; only one array can be read'
            raise DataError(f'{origin}: {key} {several}' if parts else f'{origin} has no {key}')
    steps = columns['actions'].rows
    for name, key in names.items():
        rows = columns[key].rows
        if rows != steps + (name not in _STEPS):
            raise DataError(f'{origin}: {key} has {rows} rows, of {steps} actions')
    episode = {name: columns[key] for name, key in names.items()}
    check_written(column for name, column in episode.items() if name not in _LABELS)
    return episode


def _blocks(
    origin: str, episode: Columns, fitted: Mapping[str, Fitted]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one episode, with a row for its last observation."""
    steps = episode['actions'].shape[0]
    yield 'terminals', np.arange(steps + 1) == steps
    ends = fitted['terminals'].convert(episode['terminations'].read())
    if not np.isin(ends, (0, 1)).all():
        raise DataError(f'{origin}: terminations holds values other than 0 and 1')
    yield 'rewards', np.pad(fitted['rewards'].convert(episode['rewards'].read()), (0, 1))
    yield 'masks', np.pad(1 - ends.astype(np.float32), (0, 1), constant_values=1)
    yield 'actions', np.pad(fitted['actions'].convert(episode['actions'].read()), ((0, 1), (0, 0)))
    for name, column in episode.items():
        if name not in _STEPS:
            for block in column.blocks():
                yield name, fitted[name].convert(block)
