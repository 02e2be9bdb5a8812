"""The runs of a sweep's file, in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.files import LockedError, locked, make_folder
from fql.command import command
from fql.errors import FQLError
from fql.settings.dataset_paths import task_dataset_path
from fql.stopping import EXIT_CODE
from fql.sweeps.cluster import queued_runs, submit
from fql.sweeps.file import SweepRun, read_sweep
from fql.sweeps.folder import (
    State,
    SweepFolder,
    failure,
    state_of,
    sweep_table,
    train_command,
    write_record,
)
from fql.sweeps.processes import run_processes


def dry_run(file: Path, path: Path, data_dir: str) -> None:
    """Print the command of each run of a sweep."""
    folder = SweepFolder(path)
    for run in read_sweep(file):
        print(command(*train_command(folder, run, data_dir)))


def sweep(
    file: Path,
    path: Path,
    data_dir: str,
    jobs: int,
    gpus: Sequence[int],
    cluster: str | None,
    options: Mapping[str, Any],
) -> int:
    """Run, here or on a cluster, the missing runs of a sweep; print its table.

    Args:
        file: see `fql.sweeps.file`.
        path: the sweep's folder.
        data_dir: where the data are; empty for the default.
        jobs: runs at the same time.
        gpus: see `run_processes`.
        cluster, options: see `submit`; without a cluster, the runs are processes of this machine.

    Returns:
        0: nothing failed; `EXIT_CODE`: stopped by a signal, in good order.

    Raises:
        FQLError, DataError: the file is wrong, the folder is another sweep's, data are missing, or
            another process runs this sweep, whose table is printed: nothing was started then. Or
            runs failed.
    """
    runs = read_sweep(file)
    for dataset, task in {(run.config.dataset, run.config.task) for run in runs}:
        task_dataset_path(task, dataset, data_dir)
    folder = SweepFolder(path)
    make_folder(folder.path)
    is_stopped = False
    failed: dict[str, str] = {}
    try:
        with locked(folder.lock, f'runs the sweep in {folder.path}'):
            write_record(folder, file, runs)
            states = states_of(folder, runs)
            print(sweep_table(folder, runs, states), flush=True)
            if cluster is not None:
                submit_missing(folder, runs, states, data_dir, cluster, jobs, options)
            elif any(state != 'done' for state in states.values()):
                is_stopped, failed = run_processes(folder, runs, data_dir, jobs, gpus)
                print(sweep_table(folder, runs, states_of(folder, runs)))
    except LockedError:
        print(sweep_table(folder, runs, states_of(folder, runs)))
        raise
    for name, reason in failed.items():
        print(f'failed: {name}: {reason} (log: {folder.path / name}.log)')
    print(f'folder: {folder.path}; report: {command("report", folder.path)}')
    if is_stopped:
        return EXIT_CODE
    if failed:
        what = f'{len(failed)} of {len(runs)} runs failed'
        raise FQLError(f'{what}; run the same command to try them again')
    return 0


def submit_missing(
    folder: SweepFolder,
    runs: Sequence[SweepRun],
    states: Mapping[str, State],
    data_dir: str,
    cluster: str,
    jobs: int,
    options: Mapping[str, Any],
) -> None:
    """Submit the runs that are neither done nor in progress; print what failed before.

    Raises:
        FQLError: see `submit`; or they would run on this machine, more than `jobs` at once.
    """
    missing = [run for run in runs if states[run.name] not in ('done', 'running', 'queued')]
    if cluster == 'local' and len(missing) > jobs:
        raise FQLError(
            f'--cluster local begins all {len(missing)} runs at once: give --jobs {len(missing)}, '
            'or leave out --cluster'
        )
    for run in missing:
        if states[run.name] == 'failed':
            print(f'failed before: {run.name}: {failure(folder, run)}')
    if missing:
        submit(folder, missing, data_dir, cluster, jobs, options)
        print(f'submitted jobs: {len(missing)}; run the same command to see their states')


def states_of(folder: SweepFolder, runs: Sequence[SweepRun]) -> dict[str, State]:
    """How far each run is, by its name."""
    queued = queued_runs(folder)
    return {run.name: state_of(folder, run, run.name in queued) for run in runs}
