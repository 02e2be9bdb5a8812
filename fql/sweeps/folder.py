"""A sweep's folder: its record, its runs, and how far each of them is.

<folder>/sweep.toml                     the record
<folder>/TASK/AGENT/seed-N/             a run folder
<folder>/TASK/AGENT/seed-N.log          the output of its process
"""

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, get_args

from data_pipeline.files import lock_file, write_text
from fql.errors import FQLError
from fql.output import format_table
from fql.runs.measures import Measure, read_results
from fql.runs.run_folder import RunFolder, finished_steps
from fql.sweeps.file import RECORD, SweepRun, read_sweep

State = Literal['done', 'running', 'queued', 'stopped', 'failed', 'not begun']
STATES: tuple[State, ...] = get_args(State)
_ATTEMPT = '\n$ fql '
_TAIL_BYTES = 64 << 10
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep."""

    path: Path

    @property
    def record(self) -> Path:
        """The sweep's file."""
        return self.path / RECORD

    @property
    def lock(self) -> Path:
        """Lock that the process that starts the runs holds."""
        return self.path / 'sweep.lock'

    @property
    def cluster(self) -> Path:
        """What submitit writes, and the jobs that were submitted."""
        return self.path / 'cluster'

    def run(self, run: SweepRun) -> RunFolder:
        """A run's folder."""
        return RunFolder(self.path / run.name)

    def log(self, run: SweepRun) -> Path:
        """The output of a run's processes."""
        return self.path / f'{run.name}.log'


def write_record(folder: SweepFolder, source: Path, runs: list[SweepRun]) -> None:
    """Copy the sweep's file into its folder.

    A new file must have all runs of the old one, with the same settings; it can add runs.

    Raises:
        FQLError: a run of the sweep there is missing in the new file, or has other settings.
    """
    if folder.record.exists():
        arguments = {run.name: run.arguments for run in runs}
        for run in read_sweep(folder.record):
            if arguments.get(run.name) != run.arguments:
                what = 'has other settings' if run.name in arguments else 'is missing'
                raise FQLError(
                    f'{folder.record} is of another sweep: {run.name} {what} in {source}; '
                    'name another --dir'
                )
    text = source.read_text(encoding='utf-8')
    if not folder.record.exists() or folder.record.read_text(encoding='utf-8') != text:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_text(folder.record, text)


def train_command(folder: SweepFolder, run: SweepRun, data_dir: str) -> list[str]:
    """The arguments of `fql` that start or continue a run."""
    place = ['--run-dir', str(folder.run(run).path), '--resume', 'auto']
    data = ['--data-dir', data_dir] if data_dir else []
    return ['train', *run.arguments, *place, *data]


def is_done(folder: RunFolder, run: SweepRun) -> bool:
    """Whether a run has made all its updates and, as its last step, drawn its curve."""
    latest = max(finished_steps(folder.checkpoints), default=-1)
    return latest >= run.config.total_updates and folder.learning_curve.exists()


def updates_made(folder: RunFolder) -> int:
    """Updates that a run's metrics or checkpoints show."""
    steps = finished_steps(folder.checkpoints)
    for line in reversed(_tail(folder.train_csv).split(b'\n')[:-1]):
        first = line.partition(b',')[0]
        if first.isdigit():
            steps.append(int(first))
            break
    return max(steps, default=0)


def _tail(path: Path) -> bytes:
    """The end of a file that may be long; empty where it cannot be read."""
    if not path.is_file():  # Opening a pipe would never end.
        return b''
    try:
        with path.open('rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read()
    except OSError:
        return b''


@contextmanager
def claimed_log(path: Path) -> Iterator[IO[bytes] | None]:
    """The log of a run, for the output of its process; None while another process has it.

    The lock belongs to the open file: it lasts until the last process with this output has ended,
    however that ends. So a process that outlives its sweep is known.

    Raises:
        FQLError: something else has the log's name.
    """
    if path.exists() and not path.is_file():  # Opening a pipe would never end.
        raise FQLError(f'{path} is not a file: move it away')
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('ab') as file:
        deadline = time.monotonic() + _LOOK_SECONDS
        while not (is_ours := lock_file(file)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 10)  # `is_running` may have it, for a moment.
        yield file if is_ours else None


def begin_attempt(log: IO[bytes], arguments: Sequence[str]) -> None:
    """Write the command that is about to be started into its log."""
    log.write(f'{_ATTEMPT}{shlex.join(arguments)}\n'.encode())
    log.flush()


def is_running(folder: SweepFolder, run: SweepRun) -> bool:
    """Whether a process of the run exists, on this machine or where the file's lock is seen.

    The log is only read: the sweep may be another user's.
    """
    log = folder.log(run)
    if not log.is_file():
        return False
    with log.open('rb') as file:
        return not lock_file(file, shared=True)


def state_of(folder: SweepFolder, run: SweepRun, queued: bool = False) -> State:
    """How far a run is.

    Args:
        queued: whether a cluster has a job of it.
    """
    if is_done(folder.run(run), run):
        return 'done'
    if is_running(folder, run):
        return 'running'
    if queued:
        return 'queued'
    if not folder.log(run).exists():
        return 'not begun'
    return 'failed' if failure(folder, run) else 'stopped'


def failure(folder: SweepFolder, run: SweepRun) -> str:
    """The last line that a failed run printed; empty if it was stopped or killed."""
    tail = _tail(folder.log(run)).decode('utf-8', errors='replace')
    tail = tail.rpartition(_ATTEMPT)[2]
    lines = [line.strip() for line in tail.replace('\r', '\n').splitlines() if line.strip()]
    last = lines[-1] if lines else ''
    is_fault = last.startswith('fql: ') and not last.startswith('fql: stopped')
    return last if is_fault or 'Traceback (most recent call last):' in tail else ''


def sweep_table(folder: SweepFolder, runs: list[SweepRun], states: Mapping[str, State]) -> str:
    """A line for each task, agent and variant: how many of its runs are in which state.

    The mean of their last evaluations follows.
    """
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(run.name.rpartition('/')[0], []).append(run)
    shown = [state for state in STATES if state in states.values()]
    rows = []
    for name, members in groups.items():
        found = [states[run.name] for run in members]
        counts = [str(found.count(state) or '-') for state in shown]
        rows.append([name, *counts, _last_results(folder, members)])
    totals = [str(list(states.values()).count(state)) for state in shown]
    if len(rows) > 1:
        rows.append(['all', *totals, ''])
    return format_table(['', *shown, 'last evaluations'], rows)


def _last_results(folder: SweepFolder, runs: list[SweepRun]) -> str:
    """The mean of the last evaluation of each run that has one, and how many cannot be read.

    Runs with another measure have a mean of their own.
    """
    found = []
    for run in runs:
        with suppress(FQLError):
            found.append(read_results(folder.run(run).eval_csv))
    last: dict[Measure, list[float]] = {}
    for measure, results in found:
        if results:
            last.setdefault(measure, []).append(results[max(results)])
    parts = [
        f'{measure.name} {measure.text(sum(values) / len(values))} of {len(values)}'
        for measure, values in last.items()
    ]
    if len(found) < len(runs):
        parts.append(f'{len(runs) - len(found)} damaged')
    return ', '.join(parts)
