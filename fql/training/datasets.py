"""The prepared dataset of a run, and where it is. Imports nothing slow."""

from pathlib import Path

from data_pipeline.data_dir import dataset_folder
from data_pipeline.errors import DataError
from fql.command import command
from fql.envs.tasks import find_task


def dataset_path(dataset: str, data_dir: str) -> Path:
    """The folder of a prepared dataset.

    Raises:
        DataError: there is none; says how to make it.
    """
    path = dataset_folder(data_dir, dataset)
    if not path.exists():
        raise DataError(
            f'no dataset {dataset} in {path.parent}; make it with {command("prepare", dataset)} '
            '[--source FILE.npz], or name its folder with --data-dir'
        )
    return path


def task_dataset_path(task: str, dataset: str, data_dir: str) -> Path:
    """The same of the named dataset, or of the task's own if none is named.

    Raises:
        FQLError: there is no such task.
    """
    return dataset_path(dataset or find_task(task).dataset, data_dir)
