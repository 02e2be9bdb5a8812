"""Export of frame stores as RLDS datasets in TFDS's format, readable without this code.

    <out>/ogbench/<dataset>/1.0.0/      ArrayRecord files, dataset_info.json, features.json

    tfds.data_source('ogbench/visual-cube-single-play-v0', split='train', data_dir=out)
    tfds.builder('ogbench/visual-cube-single-play-v0', data_dir=out).as_data_source('train')
    tfds.builder_from_directory(folder).as_data_source('train')

`tfds.load` and `as_dataset` cannot read it: TFDS reads ArrayRecord files as data sources only.

Any store can be exported, and so every OGBench dataset. A step's `observation` is an array, or a
dictionary of several by name. An episode's last step is its last row: an observation, and an action
that is not used. OGBench's data have no goals: rewards are 0, discounts 1, and no step is terminal;
a task's rewards follow from qpos (see `data_pipeline.store.labels`). If a store has rewards and
masks, these are the rewards and discounts. Actions that the store has scaled from another range are
scaled back, so that readers need to know no range. The environments of a replay, each a split of
its own, become one split `train`.
"""

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from data_pipeline.action_range import ActionRange, action_range_from_json
from data_pipeline.errors import DataError, first_line
from data_pipeline.files import atomic_folder, has_text_name
from data_pipeline.observations import map_named, named
from data_pipeline.progress import Progress, running_sum
from data_pipeline.store.frame_store import FrameStore, Split

DATASET = 'ogbench'
VERSION = '1.0.0'
_SHARD_BYTES = 1 << 30  # of frames before compression


def export_tfds(store: FrameStore, out: Path, progress: Progress | None = None) -> Path:
    """Write all splits of a store as `<out>/ogbench/<dataset>/1.0.0`, which is returned.

    Only a few episodes are in memory at a time. Arrays are stored as raw bytes, so that reading
    restores them exactly; actions that are scaled back, as float32.

    Args:
        store: an open store.
        out: the TFDS data folder.
        progress: called as `progress(done_rows, all_rows)` after each episode.

    Raises:
        DataError: the dataset exists already, or cannot be written.
    """
    target = Path(out) / DATASET / store.manifest.dataset / VERSION
    if target.exists():
        raise DataError(f'{target} exists; delete it or name another folder')
    if not has_text_name(target):
        raise DataError(f'{target}: TFDS cannot write into a folder whose name is no UTF-8')
    try:
        with atomic_folder(target) as folder:
            _write(store, folder, progress)
    except FileExistsError as error:
        raise DataError(f'{target} exists; delete it or name another folder') from error
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter on a full disk.
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise DataError(f'{target}: cannot be written: {reason}') from error
    return target


def common_info(store: FrameStore) -> list[str]:
    """Names of the information that all splits have; TFDS needs the same steps in all."""
    first, *others = (split.info for split in store.splits.values())
    return [name for name in first if all(name in info for info in others)]


def episodes_per_shard(lengths: np.ndarray, row_bytes: int) -> int:
    """The number of episodes in a file: 1 GiB of frames, if they are of average length.

    Args:
        lengths: (m,) rows of each episode.
        row_bytes: of a frame.
    """
    return max(1, _SHARD_BYTES * len(lengths) // (int(lengths.sum()) * row_bytes))


def map_steps(
    function: Callable[[np.ndarray], Any], split: Split, info: Iterable[str]
) -> dict[str, Any]:
    """`function` of each array of a split that is stored as it is, in the form of a step.

    Args:
        info: names of the information to take.
    """
    return {
        'observation': map_named(function, split.observations),
        'action': function(split.actions),
        **{name: function(split.info[name]) for name in info},
    }


def step_features(split: Split, info: Iterable[str]) -> Any:
    """TFDS's features of one step; for `info` see `map_steps`."""

    def tensor(array: np.ndarray) -> Any:
        return tfds.features.Tensor(
            shape=array.shape[1:], dtype=array.dtype, encoding=tfds.features.Encoding.BYTES
        )

    return tfds.features.FeaturesDict(
        {
            **map_steps(tensor, split, info),
            'reward': np.float32,
            'discount': np.float32,
            'is_first': np.bool_,
            'is_last': np.bool_,
            'is_terminal': np.bool_,
        }
    )


def _write(store: FrameStore, folder: Path, progress: Progress | None) -> None:
    name = store.manifest.dataset
    splits = store.splits
    first = next(iter(splits.values()))
    names = common_info(store)
    sources = {split: dict(source) for split, source in store.manifest.sources.items()}
    ranges = {
        split: action_range_from_json(source.pop('action_range', None))
        for split, source in sources.items()
    }
    for split_name, source in sources.items():
        if ranges[split_name] is not None:  # The store's notes say that actions are scaled.
            source['notes'] = [*source.get('notes', []), 'actions are scaled back here']
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=DATASET,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
            config_name=name,
        ),
        description=(
            f"{name} in RLDS form. An episode's last action leads nowhere. Actions are in the "
            "data's own units. Without a task of the data's own, rewards are 0 and discounts 1."
        ),
        features=tfds.features.FeaturesDict(
            {'steps': tfds.features.Dataset(step_features(first, names))}
        ),
        # Other users need not know this machine's folders.
        metadata=tfds.core.MetadataDict(
            sources={
                split: {**source, 'path': Path(source['path']).name}
                for split, source in sources.items()
            }
        ),
    )
    advance = running_sum(progress, sum(len(split.terminals) for split in splits.values()))
    row_bytes = sum(array[0].nbytes for array in named(first.observations).values())
    lengths = np.concatenate([split.lengths for split in splits.values()])
    writer = tfds.core.SequentialWriter(
        info,
        max_examples_per_shard=episodes_per_shard(lengths, row_bytes),
        file_format='array_record',
    )
    written_as = {split: 'val' if split == 'val' else 'train' for split in splits}
    writer.initialize_splits(sorted(set(written_as.values())))
    for split_name, split in splits.items():
        episodes = _episodes(split, names, ranges[split_name], advance)
        writer.add_examples({written_as[split_name]: episodes})
    writer.close_all()


def _episodes(
    split: Split,
    info: Iterable[str],
    action_range: ActionRange | None,
    advance: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    """RLDS episodes, of T + 1 steps each."""
    ends = np.cumsum(split.lengths)
    # A last row's are not used; a terminal step with a reward would be read as a transition.
    rewards, discounts = (
        np.where(split.terminals, unused, split.labels.get(name, unused)).astype(np.float32)
        for name, unused in (('rewards', 0), ('masks', 1))
    )
    for steps, end in zip(split.lengths, ends, strict=True):
        places = np.arange(steps)
        stored = map_steps(itemgetter(slice(end - steps, end)), split, info)
        if action_range is not None:
            stored['action'] = action_range.from_unit(stored['action']).astype(np.float32)
        yield {
            'steps': {
                **stored,
                'reward': rewards[end - steps : end],
                'discount': discounts[end - steps : end],
                'is_first': places == 0,
                'is_last': places == steps - 1,
                'is_terminal': np.zeros(steps, bool),
            }
        }
        advance(int(steps))
