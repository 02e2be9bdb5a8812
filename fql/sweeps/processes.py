"""A sweep on this machine: its runs as processes, some at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from tqdm import tqdm

from fql.command import PROGRAM
from fql.errors import FQLError
from fql.runs.progress import move_to, progress_bar
from fql.stopping import EXIT_CODE, ignore_hang_up
from fql.sweeps.file import SweepRun
from fql.sweeps.folder import (
    SweepFolder,
    begin_attempt,
    claimed_log,
    failure,
    is_done,
    is_running,
    train_command,
    updates_made,
)

POLL_SECONDS = 0.5


@dataclass
class RunsInProgress:
    """The runs in progress, and a request to stop them.

    Attributes:
        started: processes started here.
        others: runs whose process an earlier sweep left.
        is_stopping: whether no run is to be started any more.
    """

    started: dict[str, 'subprocess.Popen[bytes]'] = field(default_factory=dict)
    others: dict[str, SweepRun] = field(default_factory=dict)
    is_stopping: bool = False

    def __len__(self) -> int:
        return len(self.started) + len(self.others)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on: at the first one a run saves and ends, at the second one it ends."""
        self.is_stopping = True
        ignore_hang_up()
        for process in self.started.values():
            process.send_signal(signal.SIGTERM)

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM stop the runs."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_processes(
    folder: SweepFolder,
    runs: Sequence[SweepRun],
    data_dir: str,
    jobs: int,
    gpus: Sequence[int] = (),
) -> tuple[bool, dict[str, str]]:
    """Run the unfinished runs of a sweep, `jobs` at a time; a failed one does not stop others.

    Args:
        gpus: the processes take turns on these; none: each sees all.

    Returns:
        Whether a signal has stopped them in good order; and why runs failed, by their names.
    """
    waiting = [run for run in runs if not is_done(folder.run(run), run)]
    going = RunsInProgress(others={run.name: run for run in waiting if is_running(folder, run)})
    by_name = {run.name: run for run in runs}
    waiting = [run for run in waiting if run.name not in going.others]
    for name in going.others:
        tqdm.write(f'running already: {name}')
    failed: dict[str, str] = {}
    total = sum(run.config.total_updates for run in runs)
    made = {run.name: min(updates_made(folder.run(run)), run.config.total_updates) for run in runs}
    slots = dict.fromkeys(range(jobs), '')
    with (
        going.stopped_by_signals(),
        progress_bar('sweep', 'update', total, sum(made.values())) as bar,
    ):
        while going.started or ((going.others or waiting) and not going.is_stopping):
            while waiting and len(going) < jobs and not going.is_stopping:
                run = waiting.pop(0)
                slot = next(slot for slot, name in slots.items() if name not in going.started)
                slots[slot] = run.name
                if fault := begin(folder, run, data_dir, gpu_variables(slot, jobs, gpus), going):
                    failed[run.name] = fault
            time.sleep(POLL_SECONDS)
            for name in [*going.started, *going.others]:
                made[name] = updates_made(folder.run(by_name[name]))
            # Less than before where a killed run continues from its checkpoint.
            move_to(bar, sum(made.values()))
            for name, code in ended(folder, going).items():
                run = by_name[name]
                if code is None and not is_done(folder.run(run), run):
                    waiting.append(run)
                elif fault := report_end(folder, run, code, going.is_stopping):
                    failed[name] = fault
    for name in going.others:
        tqdm.write(f'still running, started by an earlier sweep: {name}')
    return going.is_stopping, failed


def begin(
    folder: SweepFolder,
    run: SweepRun,
    data_dir: str,
    variables: Mapping[str, str],
    going: RunsInProgress,
) -> str:
    """Start a run and add it to those in progress; return why it cannot be started, else ''."""
    try:
        process = start(folder, run, data_dir, variables)
    except (FQLError, OSError) as error:
        fault = f'cannot be started: {error}'
        tqdm.write(f'failed: {run.name}: {fault}')
        return fault
    if process is None:
        going.others[run.name] = run
        return ''
    going.started[run.name] = process
    if going.is_stopping:  # The signal came while it was being started.
        process.send_signal(signal.SIGTERM)
    tqdm.write(f'started: {run.name} (log: {folder.log(run)})')
    return ''


def report_end(folder: SweepFolder, run: SweepRun, code: int | None, is_stopping: bool) -> str:
    """Say how a run has ended; return why it has failed, else ''.

    Args:
        code: the exit code; None if unknown, of a run that is done.
    """
    fault = ''
    if is_done(folder.run(run), run):
        tqdm.write(f'done: {run.name}')
    elif is_stopping and code in (EXIT_CODE, -signal.SIGTERM):
        tqdm.write(f'stopped: {run.name}')
    else:
        fault = failure(folder, run) or f'ended with exit code {code}'
        tqdm.write(f'failed: {run.name}: {fault}')
    return fault


def start(
    folder: SweepFolder, run: SweepRun, data_dir: str, variables: Mapping[str, str]
) -> 'subprocess.Popen[bytes] | None':
    """Start a run's process; None if another one is there.

    It is not in the terminal's process group: Ctrl-C reaches it through `RunsInProgress.stop`
    alone.
    """
    with claimed_log(folder.log(run)) as log:
        if log is None:
            return None
        arguments = train_command(folder, run, data_dir)
        begin_attempt(log, arguments)
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ended(folder: SweepFolder, going: RunsInProgress) -> dict[str, int | None]:
    """Remove ended runs from those in progress; return their exit codes, None if unknown."""
    codes: dict[str, int | None] = {
        name: process.poll()
        for name, process in going.started.items()
        if process.poll() is not None
    }
    codes |= {name: None for name, run in going.others.items() if not is_running(folder, run)}
    for name in codes:
        going.started.pop(name, None)
        going.others.pop(name, None)
    return codes


def gpu_variables(slot: int, jobs: int, gpus: Sequence[int]) -> dict[str, str]:
    """Environment variables that give a process its GPU, and its share of that GPU's memory."""
    if not gpus:
        return {}
    sharing = -(-jobs // len(gpus))
    return {
        'CUDA_VISIBLE_DEVICES': str(gpus[slot % len(gpus)]),
        'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sharing:.3f}',
    }
