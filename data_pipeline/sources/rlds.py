"""RLDS datasets, read through TFDS as a source of frame stores.

An RLDS dataset holds episodes, and an episode its steps. A step is an observation and the action
taken there. The last step of an episode is its final observation, and its action is not used. This
is OGBench's layout of rows: a step becomes a row, and the last one's `terminals` is set. Rewards
are kept if they are requested; those of OGBench tasks come from `data_pipeline.store.labels`.

The template that many converters start from writes a reward on the last step, which is terminal
there. Such a step is a transition too, and its observation is repeated as its next one.
Source: https://github.com/google-research/rlds
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.file_utils import list_data_dirs

from data_pipeline.array_names import INFO_ARRAYS
from data_pipeline.errors import DataError, first_line
from data_pipeline.files import file_sha256
from data_pipeline.observations import array_name
from data_pipeline.source_split import SPLIT_NAMES, Note, SourceSplit
from data_pipeline.sources.arrays import fit_arrays
from data_pipeline.sources.rows import lost_rewards
from data_pipeline.sources.source_files import format_of
from data_pipeline.sources.table import settle_last_actions

_MARKS = {'is_first', 'is_last', 'is_terminal'}
_OWN_FEATURES = 'tensorflow_datasets.core.features.'


@dataclass(frozen=True)
class RldsKeys:
    """The features of a step that a store needs; slashes separate the levels of nested ones.

    Steps' `qpos`, `qvel` and `button_states`, each (d,), are kept if they exist.

    Attributes:
        observation: images uint8 (h, w, c), (c, h, w) or (h, w), or float vectors (d,); several by
            the names that they get, see `observation_keys`.
        action: floats (a,), within [-1, 1].
        reward: a number; '' to keep none. A transition's mask is then 0 where `discount` is 0 or
            the step that follows has `is_terminal` set, else 1.
    """

    observation: str | Mapping[str, str] = 'observation'
    action: str = 'action'
    reward: str = ''

    @property
    def observations(self) -> dict[str, str]:
        """The keys of the observations by the store's names."""
        keys = self.observation
        keys = {'': keys} if isinstance(keys, str) else keys
        return {array_name(name): key for name, key in sorted(keys.items())}


def rlds_splits(dataset: str, keys: RldsKeys) -> dict[str, SourceSplit]:
    """The splits `train` and, where there is one, `val` of an RLDS dataset.

    Args:
        dataset: a folder that TFDS has written, or a name `dataset[/config][:version]` that TFDS
            knows, and downloads and prepares if necessary.
        keys: which features to read.

    Raises:
        DataError: no such dataset, split or feature, or features of unsuitable types or shapes.
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
    others = sorted(set(builder.info.splits) - set(splits.values()))
    return {
        split: _rlds_split(dataset, builder, name, paths, keys, others)
        for split, name in splits.items()
        if name is not None
    }


def _open_builder(dataset: str) -> Any:
    folder = _dataset_folder(Path(dataset)) if Path(dataset).is_dir() else None
    # A named dataset may be prepared in TFDS's folder already, and then is opened by its files too.
    name = re.split(r'\W', dataset)[0]
    for place in [folder] if folder else [Path(root) / name for root in list_data_dirs() if name]:
        _check_features(place)
    try:
        if folder is not None:
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(dataset)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except Exception as error:  # The dataset's code runs here, and may raise anything.
        reason = first_line(error)
        raise DataError(f'{dataset}: TFDS can neither open nor prepare it: {reason}') from error
    return builder


def _check_features(folder: Path) -> None:
    """Refuse features whose classes are not TFDS's, since TFDS would import their modules.

    Raises:
        DataError: a `features.json` in the folder names such a class, or is damaged.
    """
    for path in sorted(folder.rglob('features.json')):
        try:
            names = set(_class_names(json.loads(path.read_text(encoding='utf-8'))))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f'{path}: cannot be read: {error}') from error
        if foreign := sorted(name for name in names if not name.startswith(_OWN_FEATURES)):
            raise DataError(
                f'{path}: names the feature class {foreign[0]}, which is not one of TFDS; opening '
                'it would run its code. Write the dataset with features of TFDS'
            )


def _class_names(value: Any) -> Iterator[str]:
    """The classes that a parsed `features.json` names; some of it is JSON within strings."""
    if isinstance(value, str):
        with suppress(ValueError):  # Text.
            value = json.loads(value)
    if isinstance(value, list):
        for item in value:
            yield from _class_names(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ('pythonClassName', 'python_class_name', 'type') and isinstance(item, str):
                yield item
            else:
                yield from _class_names(item)


def _dataset_folder(folder: Path) -> Path:
    """The dataset in a folder, which may be the folder of its name, configuration or version."""
    found = [path.parent for path in sorted(folder.rglob('dataset_info.json'))]
    if len(found) != 1:
        names = ', '.join(map(str, found)) or 'none'
        raise DataError(f'{folder}: must hold one TFDS dataset; found {names}')
    return found[0]


def _array_paths(dataset: str, builder: Any, keys: RldsKeys) -> dict[str, str]:
    """The path within a step of each array of the store."""
    features = builder.info.features
    if 'steps' not in features or not isinstance(features['steps'], tfds.features.Dataset):
        raise DataError(
            f'{dataset}: not an RLDS dataset: its examples have no `steps` that are a '
            'tfds.features.Dataset'
        )
    leaves = _leaves(features['steps'].feature)
    paths = {**keys.observations, 'actions': keys.action}
    ends = ['is_first', 'is_last']
    if keys.reward:
        paths['rewards'] = keys.reward
        ends += ['discount', 'is_terminal']
    for name, path in paths.items():
        if path not in leaves:
            found = ', '.join(sorted(leaves))
            raise DataError(f'{dataset}: no {name} at {path!r}; steps have {found}')
    return paths | {name: name for name in (*INFO_ARRAYS, *ends) if name in leaves}


def _leaves(feature: Any, names: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """The names that lead to each feature of a nested dictionary, by path."""
    if not isinstance(feature, tfds.features.FeaturesDict):
        return {'/'.join(names): names}
    leaves: dict[str, tuple[str, ...]] = {}
    for name, child in feature.items():
        leaves |= _leaves(child, (*names, name))
    return leaves


def _rlds_split(
    dataset: str,
    builder: Any,
    name: str,
    paths: Mapping[str, str],
    keys: RldsKeys,
    other_splits: Sequence[str],
) -> SourceSplit:
    origin = f'{dataset}, split {name}'
    info = builder.info.splits[name]

    def episodes(tally: Counter[str]) -> Iterator[dict[str, np.ndarray]]:
        for number, columns in enumerate(_read_episodes(origin, builder, name, paths)):
            rows = _as_rows(f'{origin}, episode {number}', columns, tally) if columns else {}
            if rows and len(rows['terminals']) > 1:
                yield rows
            else:
                tally['skipped'] += 1

    first = next(episodes(Counter()), None)
    if first is None:
        raise DataError(f'{origin}: no episode has two steps, as a transition needs')
    fitted = fit_arrays(
        origin, {array: (rows.shape[1:], rows.dtype) for array, rows in first.items()}
    )
    leaves = _leaves(builder.info.features['steps'].feature).keys()
    ignored = sorted(leaves - set(paths.values()) - _MARKS)
    ignored += [f'split {other}' for other in other_splits if name == 'train']

    def read(note: Note) -> Iterator[tuple[str, np.ndarray]]:
        tally: Counter[str] = Counter()
        for episode in episodes(tally):
            for array, rows in episode.items():
                yield array, fitted[array].convert(rows)
        for fit in fitted.values():
            if fit.note:
                note(fit.note)
        for line in _account(origin, tally):
            note(line)
        if ignored:
            note(f'ignored: {", ".join(ignored)}')

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
        arrays={array: fit.spec for array, fit in fitted.items()},
        rows=info.num_examples * len(first['terminals']),
        rows_are_known=False,
        read=read,
    )


def _read_episodes(
    origin: str, builder: Any, split: str, paths: Mapping[str, str]
) -> Iterator[dict[str, np.ndarray]]:
    """The columns `paths` of each episode, each (steps, ...), in the order of the files.

    An episode without steps has no columns.
    """
    leaves = _leaves(builder.info.features['steps'].feature)
    unread = [names for path, names in leaves.items() if path not in paths.values()]
    decoders = {'steps': _nested(dict.fromkeys(unread, tfds.decode.SkipDecoding()))}
    read = _from_array_record if _is_array_record(builder) else _from_tf_data
    try:
        for steps in read(builder, split, decoders):
            yield {
                name: np.stack([_leaf(step, leaves[path]) for step in steps])
                for name, path in paths.items()
                if steps
            }
    except (OSError, ValueError, RuntimeError, IndexError) as error:
        reason = _other_file(Path(builder.data_path)) or first_line(error)
        raise DataError(f'{origin}: cannot be read: {reason}') from error


def _other_file(folder: Path) -> str:
    """Which file of a dataset is of another format, such as a Git LFS pointer; empty if none is."""
    formats = ((path, format_of(path)) for path in sorted(folder.iterdir()) if path.is_file())
    return next((f'{path.name} is {name}' for path, name in formats if name), '')


def _is_array_record(builder: Any) -> bool:
    return builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD


def _from_array_record(builder: Any, split: str, decoders: Any) -> Iterator[list[Any]]:
    """The steps of each episode, without TensorFlow."""
    for episode in builder.as_data_source(split, decoders=decoders):
        yield list(episode['steps'])  # Each episode is decoded when it is read.


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


def _as_rows(
    origin: str, columns: Mapping[str, np.ndarray], tally: Counter[str]
) -> dict[str, np.ndarray]:
    """The rows of an episode: the columns, with `terminals` for `is_last`; counted in `tally`."""
    rows = dict(columns)
    steps = len(rows['actions'])
    for name, odd in (('is_first', slice(1, None)), ('is_last', slice(None, -1))):
        marks = np.zeros(steps, bool)
        marks[odd] = _numbers(origin, name, rows.pop(name, marks)).astype(bool)[odd]
        if marks.any():
            raise DataError(f'{origin}: {name} is set at step {np.argmax(marks)} of {steps}')
    if 'rewards' in rows:
        rewards = _numbers(origin, 'rewards', rows['rewards'])
        discounts = _numbers(origin, 'discount', rows.pop('discount', np.ones(steps)))
        if np.isnan(discounts).any():
            raise DataError(f'{origin}: discount holds values that are not numbers')
        is_terminal = rows.pop('is_terminal', np.zeros(steps, bool))
        is_terminal = _numbers(origin, 'is_terminal', is_terminal).astype(bool)
        has_last_reward = bool(np.isfinite(rewards[-1]) and rewards[-1] != 0)
        if has_last_reward and (is_terminal[-1] or discounts[-1] == 0):
            rows = {name: np.concatenate([array, array[-1:]]) for name, array in rows.items()}
            rewards, is_terminal = np.append(rewards, 0), np.insert(is_terminal, 0, False)
            discounts = np.append(discounts, 1)
            tally['kept'] += 1
        else:
            tally['lost'] += has_last_reward
            rewards = np.append(rewards[:-1], np.zeros_like(rewards[:1]))
        # A transition ends in the next step.
        goes_on = np.append(~is_terminal[1:], True)
        rows['masks'] = ((discounts != 0) & goes_on).astype(np.float32)
        rows['rewards'] = rewards
        tally['rewarded'] += bool(rewards.any())
    terminals = np.arange(len(rows['actions'])) == len(rows['actions']) - 1
    rows = {'terminals': terminals, **rows}
    if rows['actions'].ndim == 2:
        rows['actions'] = settle_last_actions(rows['actions'], rows['terminals'])
    return rows


def _numbers(origin: str, name: str, column: np.ndarray) -> np.ndarray:
    """A column (steps,) or (steps, 1) of numbers as (steps,)."""
    if column.size != len(column) or column.dtype.kind not in 'biuf':
        shape = column.shape[1:]
        raise DataError(
            f'{origin}: {name} is {column.dtype} of shape {shape} in a step; it must be a number'
        )
    return column.reshape(len(column))


def _account(origin: str, tally: Counter[str]) -> Iterator[str]:
    """Lines for the user on what was counted.

    Raises:
        DataError: the only rewards were in steps whose actions are not used.
    """
    if tally['kept']:
        yield (
            f'the last step of {tally["kept"]:,} episodes is terminal and has a reward: it is a '
            'transition too, and its next observation is that of the same step'
        )
    yield from lost_rewards(
        origin,
        tally['lost'],
        tally['rewarded'] > 0,
        'last steps of episodes',
        'If the task ends there, set is_terminal in these steps. If not, store each reward in the '
        'step of the action that earned it',
    )
    if tally['skipped']:
        yield f'episodes of fewer than two steps, which were skipped: {tally["skipped"]:,}'


def _leaf(step: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        step = step[name]
    return step


def _nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, name), value in leaves.items():
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def _digest(files: Iterable[Path], keys: RldsKeys) -> str:
    """SHA-256 over the files and over the names of the features that are read."""
    digests = [file_sha256(path) for path in files]
    return hashlib.sha256(json.dumps([digests, _named(keys)]).encode()).hexdigest()


def _named(keys: RldsKeys) -> dict[str, Any]:
    return {name: key for name, key in asdict(keys).items() if key}
