"""The prepared dataset of a run, and where it is. Imports nothing slow."""

from pathlib import Path

from data_pipeline.data_dir import collected_file, data_dir_arguments, dataset_folder
from data_pipeline.errors import DataError
from fql.command import command
from fql.envs.tasks import QUICKSTART_DATASET, SMALL_PUZZLE_DATASET, SMALL_PUZZLE_MODULE, find_task


def dataset_path(dataset: str, data_dir: str) -> Path:
    """The folder of a prepared dataset.

    Raises:
        DataError: there is none; says how to make it.
    """
    path = dataset_folder(data_dir, dataset)
    if not path.exists():
        made = _how_to_make(dataset, data_dir)
        raise DataError(
            f'no dataset {dataset} in {path.parent}; make it with {made}, or name its folder with '
            '--data-dir'
        )
    return path


def _how_to_make(dataset: str, data_dir: str) -> str:
    """Commands; of those of the small tasks, which nobody publishes, with their collection."""
    place = data_dir_arguments(data_dir)
    if dataset == QUICKSTART_DATASET:
        return command('quickstart', *place)
    collected = collected_file(data_dir, dataset)
    prepare = command('prepare', dataset, '--source', collected, *place)
    if collected.exists():
        return prepare
    if dataset != SMALL_PUZZLE_DATASET:
        return f'{command("prepare", dataset, *place)} [--source FILE.npz]'
    env = f'{SMALL_PUZZLE_MODULE}:visual-puzzle-small-v0'
    collect = command('collect', env, '--episodes', 100, '--episode-steps', 500, *place)
    return f'{collect}, then {prepare}'


def task_dataset_path(task: str, dataset: str, data_dir: str) -> Path:
    """The same of the named dataset, or of the task's own if none is named.

    Raises:
        FQLError: there is no such task.
    """
    return dataset_path(dataset or find_task(task).dataset, data_dir)
