"""A sweep on a cluster, through submitit: a job for each run, which continues when it is requeued.

submitit passes a job as a pickled file of `TrainJob`, which holds plain strings alone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipeline.errors import first_line
from data_pipeline.files import write_json
from fql.command import PROGRAM
from fql.errors import FQLError
from fql.runs.run_spec import read_object
from fql.sweeps.file import SweepRun
from fql.sweeps.folder import SweepFolder, begin_attempt, claimed_log, train_command

JOB_MINUTES = 24 * 60
MAX_REQUEUES = 1000
"""How often a run may continue in another job when the time of its job is over."""


class TrainJob:
    """A job: one `fql train` with its own log.

    Attributes:
        arguments: the arguments of `fql`.
        log: the file that the process prints into.
    """

    def __init__(self, arguments: Sequence[str], log: str) -> None:
        self.arguments = tuple(arguments)
        self.log = log
        self._pid: int | None = None
        self._had_sigterm = False

    def __call__(self) -> None:
        """Run to the end.

        Raises:
            RuntimeError: it failed, or was stopped.
        """
        with claimed_log(Path(self.log)) as log:
            if log is None:
                raise RuntimeError(f'another process writes {self.log}')
            with suppress(ValueError):  # Not in the main thread: submitit calls it there.
                signal.signal(signal.SIGTERM, self._note_sigterm)
            begin_attempt(log, self.arguments)
            process = subprocess.Popen(
                [*PROGRAM, *self.arguments], stdout=log, stderr=log, preexec_fn=_ignore_user_signals
            )
        self._pid = process.pid
        while process.poll() is None:
            time.sleep(1)
        if process.returncode:
            raise RuntimeError(f'exit code {process.returncode}; see {self.log}')

    def checkpoint(self) -> Any:
        """Save before a preemption or at the end of the job's time; return the job to requeue."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            # Slurm sends its signals to all processes of a job. A second one would end the run
            # before it has saved.
            if not (self._had_sigterm and 'SLURM_JOB_ID' in os.environ):
                os.kill(self._pid, signal.SIGTERM)
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(TrainJob(self.arguments, self.log))

    def _note_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._had_sigterm = True


def _ignore_user_signals() -> None:
    """Ignore SIGUSR1 and SIGUSR2: one announces the end of a job's time to all its processes."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def submit(
    folder: SweepFolder,
    runs: Sequence[SweepRun],
    data_dir: str,
    cluster: str,
    jobs: int,
    options: Mapping[str, Any],
) -> None:
    """Submit a job for each of the runs, on Slurm as one array.

    Args:
        cluster: submitit's name: 'slurm', or 'local' for processes of this machine.
        jobs: how many of an array may run at the same time.
        options: of submitit's `update_parameters`.

    Raises:
        FQLError: submitit is not installed, there is no such cluster, or it takes no such options.
    """
    submitit = _submitit()
    try:
        executor = submitit.AutoExecutor(
            folder=str(folder.cluster), cluster=cluster, slurm_max_num_timeout=MAX_REQUEUES
        )
        executor.update_parameters(
            **{'timeout_min': JOB_MINUTES, 'slurm_array_parallelism': jobs, **options}
        )
        with executor.batch():
            submitted = [
                executor.submit(
                    TrainJob(train_command(folder, run, data_dir), str(folder.log(run)))
                )
                for run in runs
            ]
    except (RuntimeError, ValueError, NameError, TypeError, OSError) as error:
        raise FQLError(f'cluster {cluster}: {first_line(error)}') from error
    stored = _stored(folder)
    new = {run.name: job.job_id for run, job in zip(runs, submitted, strict=True)}
    write_json(_jobs_file(folder), {'cluster': cluster, 'jobs': {**stored.get('jobs', {}), **new}})


def queued_runs(folder: SweepFolder) -> set[str]:
    """Names of the runs whose job waits, or runs where its log's lock is not seen."""
    stored = _stored(folder)
    if not stored:
        return set()
    job_class = (
        _submitit()
        .AutoExecutor(folder=str(folder.cluster), cluster=stored['cluster'])
        ._executor.job_class
    )
    return {
        name
        for name, job_id in stored['jobs'].items()
        if not job_class(folder.cluster, job_id).done(force_check=True)
    }


def _stored(folder: SweepFolder) -> dict[str, Any]:
    path = _jobs_file(folder)
    return read_object(path) if path.exists() else {}


def _jobs_file(folder: SweepFolder) -> Path:
    return folder.cluster / 'jobs.json'


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise FQLError("--cluster needs submitit: pip install -e '.[slurm]'") from None
    return submitit
