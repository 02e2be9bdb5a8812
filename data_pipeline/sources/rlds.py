"""RLDS datasets, read through TFDS as a source of frame stores.

An RLDS dataset holds episodes, and an episode its steps. A step is an observation and the action
taken there; the last step of an episode is the observation that ended it, and its action leads
nowhere. That is OGBench's layout of rows: a step becomes a row, and the last one's `terminals` is
set. Rewards are kept where they are asked for; those of OGBench tasks come from
`data_pipeline.store.labels`.
Source: https://github.com/google-research/rlds
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.errors import DataError
from data_pipeline.sources.base import INFO_ARRAYS, LABEL_ARRAYS, ArraySpec, SourceSplit

SPLIT_NAMES = {'train': ('train',), 'val': ('val', 'validation')}
"""What each split of a store may be called in a dataset."""


@dataclass(frozen=True)
class RldsKeys:
    """Where a step holds what a store needs; slashes lead into nested features.

    observation: images uint8 (h, w, c), or vectors float32 or float64 (d,)
    action: float32 or float64 (a,), within [-1, 1]
    reward: a number; '' to keep none. A transition's mask is then 0 where `discount` is 0 or the
        step that follows has `is_terminal` set, else 1.

    Steps' `qpos`, `qvel` and `button_states`, each (d,), are kept where there are such.
    """

    observation: str = 'observation'
    action: str = 'action'
    reward: str = ''


def rlds_splits(dataset: str, keys: RldsKeys) -> dict[str, SourceSplit]:
    """The splits `train` and, where there is one, `val` of an RLDS dataset.

    Args:
        dataset: a folder that TFDS has written, or a name `dataset[/config][:version]` that TFDS
            knows, which it downloads and prepares where it has not yet.
        keys: which features to read.

    Raises:
        DataError: no such dataset, split or feature, or features of unfit types or shapes.
    """
    builder = _open_builder(dataset)
    paths = _array_paths(dataset, builder, keys)
    splits = {
        split: next((name for name in names if name in builder.info.splits), None)
        for split, names in SPLIT_NAMES.items()
    }
    if splits['train'] is None:
        found = ', '.join(builder.info.splits) or 'none at all'
        raise DataError(f'{dataset}: no split named train, only {found}')
    return {
        split: _rlds_split(dataset, builder, name, paths, keys)
        for split, name in splits.items()
        if name is not None
    }


def _open_builder(dataset: str) -> Any:
    folder = _dataset_folder(Path(dataset)) if Path(dataset).is_dir() else None
    try:
        if folder is not None:
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(dataset)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except Exception as error:  # Datasets' own code runs here, and anything may come of it.
        reason = str(error).strip().partition('\n')[0]
        raise DataError(f'{dataset}: TFDS can neither open nor prepare it: {reason}') from error
    return builder


def _dataset_folder(folder: Path) -> Path:
    """The dataset in a folder, which may be that of its name, its configuration or its version."""
    found = [path.parent for path in sorted(folder.rglob('dataset_info.json'))]
    if len(found) != 1:
        names = ', '.join(map(str, found)) or 'none'
        raise DataError(f'{folder}: must hold one TFDS dataset; found {names}')
    return found[0]


def _array_paths(dataset: str, builder: Any, keys: RldsKeys) -> dict[str, str]:
    """The path within a step of each array of the store."""
    features = builder.info.features
    if 'steps' not in features or not hasattr(features['steps'], 'feature'):
        raise DataError(f'{dataset}: not an RLDS dataset: its examples have no `steps`')
    leaves = _leaves(features['steps'].feature)
    paths = {'observations': keys.observation, 'actions': keys.action}
    ends = ['is_last']
    if keys.reward:
        paths['rewards'] = keys.reward
        ends += ['discount', 'is_terminal']
    for name, path in paths.items():
        if path not in leaves:
            found = ', '.join(sorted(leaves))
            raise DataError(f'{dataset}: no {name} at {path!r}; steps have {found}')
    return paths | {name: name for name in (*INFO_ARRAYS, *ends) if name in leaves}


def _leaves(feature: Any, prefix: str = '') -> dict[str, Any]:
    """The features of a nested dictionary of them by path."""
    if not isinstance(feature, tfds.features.FeaturesDict):
        return {prefix.removesuffix('/'): feature}
    leaves: dict[str, Any] = {}
    for name, child in feature.items():
        leaves |= _leaves(child, f'{prefix}{name}/')
    return leaves


def _rlds_split(
    dataset: str, builder: Any, name: str, paths: Mapping[str, str], keys: RldsKeys
) -> SourceSplit:
    origin = f'{dataset}, split {name}'
    info = builder.info.splits[name]

    def episodes() -> Iterator[dict[str, np.ndarray]]:
        for number, columns in enumerate(_read_episodes(origin, builder, name, paths)):
            yield _as_rows(f'{origin}, episode {number}', columns)

    first = next(episodes(), None)
    if first is None:
        raise DataError(f'{origin}: holds no episode')
    files = [Path(path) for path in info.filepaths]
    return SourceSplit(
        origin=origin,
        description={
            'path': str(builder.data_path),
            'bytes': sum(file.stat().st_size for file in files),
            'sha256': _digest(files, keys),
            'tfds': f'{builder.info.full_name}, split {name}',
            'keys': _named(keys),
        },
        arrays={
            array: ArraySpec(rows.shape[1:], _stored_dtype(origin, array, rows))
            for array, rows in first.items()
        },
        rows=info.num_examples * len(first['terminals']),
        rows_are_known=False,
        read=lambda: (block for episode in episodes() for block in episode.items()),
    )


def _read_episodes(
    origin: str, builder: Any, split: str, paths: Mapping[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    """The columns `paths` of each episode, each (steps, ...), in the order of the files."""
    unread = set(_leaves(builder.info.features['steps'].feature)) - set(paths.values())
    decoders = {'steps': _nested({path: tfds.decode.SkipDecoding() for path in unread})}
    read = _from_array_record if _is_array_record(builder) else _from_tf_data
    try:
        for steps in read(builder, split, decoders):
            yield {
                name: np.stack([_leaf(step, path) for step in steps])
                for name, path in paths.items()
            }
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise DataError(f'{origin}: cannot be read: {reason}') from error


def _is_array_record(builder: Any) -> bool:
    return builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def _from_array_record(builder: Any, split: str, decoders: Any) -> Iterator[list[Any]]:
    """The steps of each episode, without TensorFlow."""
    for episode in builder.as_data_source(split, decoders=decoders):
        yield list(episode['steps'])  # Each is decoded when it is taken.


def _from_tf_data(builder: Any, split: str, decoders: Any) -> Iterator[list[Any]]:
    """The steps of each episode of any other file format."""
    import tensorflow as tf

    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split, decoders=decoders, read_config=in_order)
    try:
        for episode in dataset:
            yield list(episode['steps'].as_numpy_iterator())
    except tf.errors.OpError as error:
        raise RuntimeError(error.message) from error


def _as_rows(origin: str, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of an episode: what was read, with `terminals` for `is_last`."""
    rows = dict(columns)
    steps = len(rows['observations'])
    early = np.flatnonzero(rows.pop('is_last', np.zeros(steps))[:-1])
    if len(early):
        raise DataError(f'{origin}: is_last is set at step {early[0]} of {steps}')
    rows['terminals'] = np.arange(steps) == steps - 1
    if 'rewards' in rows:
        discounts = rows.pop('discount', np.ones(steps))
        is_terminal = rows.pop('is_terminal', np.zeros(steps, bool))
        goes_on = np.append(~is_terminal[1:].astype(bool), True)
        rows['masks'] = ((discounts != 0) & goes_on).astype(np.float32)
        rows['rewards'] = np.append(rows['rewards'][:-1], np.zeros_like(rows['rewards'][:1]))
    # What an environment was not given may hold anything; what may stand is kept as it is.
    last_action = rows['actions'][-1]
    if not (np.abs(last_action) <= 1).all():
        rows['actions'] = np.concatenate([rows['actions'][:-1], np.zeros_like(last_action)[None]])
    return rows


def _stored_dtype(origin: str, name: str, rows: np.ndarray) -> np.dtype:
    """The store's type of an array.

    Raises:
        DataError: type or shape are not fit for it.
    """
    rank, dtype = rows.ndim, rows.dtype
    is_float = dtype in (np.float32, np.float64)
    if name == 'observations' and rank == 4 and dtype == np.uint8:
        return dtype
    if name in ('observations', 'actions') and rank == 2 and is_float:
        return np.dtype(np.float32)
    if name in INFO_ARRAYS and rank == 2 and dtype.kind in 'biuf':
        return dtype
    if name in LABEL_ARRAYS and rank == 1 and dtype.kind in 'biuf':
        return np.dtype(np.float32)
    if name == 'terminals':
        return np.dtype(bool)
    wanted = {'observations': 'uint8 (h, w, c) or float (d,)', 'rewards': 'a number'}.get(
        name, 'float (d,)'
    )
    raise DataError(f'{origin}: {name} is {dtype} {rows.shape[1:]} in a step; it must be {wanted}')


def _leaf(step: Any, path: str) -> Any:
    for name in path.split('/'):
        step = step[name]
    return step


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split('/')
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def _digest(files: Iterable[Path], keys: RldsKeys) -> str:
    """SHA-256 over the files and over which of their features are read."""
    digests = []
    for path in files:
        with open(path, 'rb') as file:
            digests.append(hashlib.file_digest(file, 'sha256').hexdigest())
    return hashlib.sha256(json.dumps([digests, _named(keys)]).encode()).hexdigest()


def _named(keys: RldsKeys) -> dict[str, str]:
    return {name: key for name, key in asdict(keys).items() if key}
