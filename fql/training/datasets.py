"""The prepared dataset of a run, and where it is. Imports nothing slow."""

from pathlib import Path

from data_pipeline.data_dir import dataset_folder
from data_pipeline.errors import DataError
from fql.command import command
from fql.envs.tasks import (
    QUICKSTART_DATASET,
    SMALL_PUZZLE_DATASET,
    SMALL_PUZZLE_MODULE,
    find_task,
)


def dataset_path(dataset: str, data_dir: str) -> Path:
    """The folder of a prepared dataset.

    Raises:
        DataError: there is none; says how to make it.
    """
    path = dataset_folder(data_dir, dataset)
    if not path.exists():
        raise DataError(
            f'no dataset {dataset} in {path.parent}; make it with {_how_to_make(dataset)}, or name '
            'its folder with --data-dir'
        )
    return path


def _how_to_make(dataset: str) -> str:
    """Commands; of those of the small tasks, which nobody publishes, with their collection."""
    if dataset == QUICKSTART_DATASET:
        return command('quickstart')
    prepare = command('prepare', dataset)
    if dataset != SMALL_PUZZLE_DATASET:
        return f'{prepare} [--source FILE.npz]'
    env = f'{SMALL_PUZZLE_MODULE}:visual-puzzle-small-v0'
    collect = command('collect', env, '--episodes', 100, '--episode-steps', 500)
    return f'{collect}, then {prepare} --source FILE.npz'


def task_dataset_path(task: str, dataset: str, data_dir: str) -> Path:
    """The same of the named dataset, or of the task's own if none is named.

    Raises:
        FQLError: there is no such task.
    """
    return dataset_path(dataset or find_task(task).dataset, data_dir)
