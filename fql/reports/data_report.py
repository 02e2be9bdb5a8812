"""A text report of what a frame store holds."""

from collections.abc import Iterator

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.observations import describe_observations, map_named
from data_pipeline.store.frame_store import FrameStore, Split
from data_pipeline.store.labels import labelled_tasks, task_labels
from fql.envs.tasks import find_task, task_names


def describe_data(store: FrameStore) -> Iterator[str]:
    """Everything that `fql inspect data` prints about a store, line by line."""
    yield from describe_manifest(store)
    for split in store.splits.values():
        yield from describe_trajectories(split)
        yield from describe_actions(split)
    for split in store.splits.values():
        yield from describe_tasks(store, split)


def describe_store(store: FrameStore) -> str:
    """Some lines on a store: its place and its contents."""
    lines = [f'{store.manifest.dataset}: {store.path}']
    for name, split in store.splits.items():
        shapes = map_named(lambda array: array.shape[1:], split.observations)
        dtypes = map_named(lambda array: array.dtype, split.observations)
        lines.append(
            f'  {name}: {split.num_transitions:,} transitions in {split.terminals.sum():,} '
            f'trajectories, observations {describe_observations(shapes, dtypes)}, '
            f'actions {split.actions.shape[1]}'
        )
        lines += [f'    {note}' for note in notes_of(store, name)]
    return '\n'.join(lines)


def notes_of(store: FrameStore, split: str) -> list[str]:
    """What was converted, skipped or ignored when a split was made; older stores lack this."""
    return store.manifest.sources[split].get('notes', [])


def describe_manifest(store: FrameStore) -> Iterator[str]:
    """What the store was made from, when and with what, and the arrays in it."""
    manifest = store.manifest
    versions = ', '.join(f'{name} {version}' for name, version in manifest.versions.items())
    yield f'{manifest.dataset}: {store.path}'
    yield f'format {manifest.format_version}, made {manifest.created} with {versions}'
    for name, source in manifest.sources.items():
        yield f'{name} from {source["path"]}'
        yield f'  {source["bytes"]:,} bytes, sha256 {source["sha256"]}'
        for note in notes_of(store, name):
            yield f'  {note}'
        for array, entry in manifest.splits[name].arrays.items():
            yield f'  {array:13} {np.dtype(entry.dtype)} {entry.shape}'


def describe_trajectories(split: Split) -> Iterator[str]:
    """Number of trajectories, and their lengths in transitions."""
    lengths = split.lengths - 1
    yield (
        f'{split.name}: {lengths.sum():,} transitions in {len(lengths):,} trajectories of '
        f'{lengths.min():,} to {lengths.max():,}, median {np.median(lengths):,g}'
    )


def describe_actions(split: Split) -> Iterator[str]:
    """Ranges of the actions of valid transitions, by dimension."""
    actions = split.actions[split.valid_rows]
    columns = zip(actions.min(axis=0), actions.mean(axis=0), actions.max(axis=0), strict=True)
    for i, (low, mean, high) in enumerate(columns):
        yield f'  action {i}: {low:+.4f} to {high:+.4f}, mean {mean:+.4f}'


def describe_tasks(store: FrameStore, split: Split) -> Iterator[str]:
    """Rewards and successes of the data's own task and of those that they can be labelled for."""
    if split.labels:
        yield f'{split.name}, own: {describe_labels(split, **split.labels)}'
    for env_id in known_tasks(store, split):
        name = f'{split.name}, {env_id.rpartition(":")[2]}'
        try:
            labels = task_labels(store, split.name, env_id)
        except DataError as error:
            yield f'{name}: no rewards: {error}'
            continue
        yield f'{name}: {describe_labels(split, *labels)}'


def describe_labels(split: Split, rewards: np.ndarray, masks: np.ndarray) -> str:
    """Successes, which are transitions with mask 0, and rewards."""
    valid = split.valid_rows
    successes = valid[masks[valid] == 0]
    trajectories = len(np.unique(split.first_rows[successes]))
    return (
        f'success in {len(successes):,} transitions of {trajectories:,} trajectories, '
        f'rewards {rewards[valid].min():g} to {rewards[valid].max():g}, '
        f'mean {rewards[valid].mean():.4f}'
    )


def known_tasks(store: FrameStore, split: Split) -> list[str]:
    """The `env_id` of the dataset's own tasks, and of those with labels in the store."""
    of_dataset: list[str] = []
    if 'qpos' in split.info:
        tasks = [find_task(name) for name in task_names()]
        dataset = store.manifest.dataset
        tasks = [task for task in tasks if task.is_ogbench and task.dataset == dataset]
        # Of OGBench's names, the one without a number means one of those that have it. The
        # quickstart's is its first task.
        of_dataset = [
            task.label_env_id
            for task in tasks
            if '-singletask-task' in task.name or not task.env_id.startswith('ogbench:')
        ]
    stored = labelled_tasks(store, split.name)
    return of_dataset + [task for task in stored if task not in of_dataset]
