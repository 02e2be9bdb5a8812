"""What a command's `--run-dir`, `--resume` and `--coordinator` ask for; free of JAX."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from fql.errors import FQLError
from fql.settings.train_config import Processes

Resume = Literal['never', 'auto', 'always']


def choose_folder(run_dir: Path | None, resume: Path | None, name: str) -> tuple[Path, Resume]:
    """The run folder that `--run-dir` and `--resume` ask for, and whether to continue it.

    Args:
        name: prefix of the folder's name if neither names one.

    Returns:
        The folder; and to continue the run there ('always'), to refuse if there is one ('never'),
        or to continue it if there is one ('auto').

    Raises:
        FQLError: they contradict each other.
    """
    if resume is None:
        return run_dir or Path('runs') / f'{name}-{datetime.now():%Y%m%d-%H%M%S}', 'never'
    if resume == Path('auto'):
        if run_dir is None:
            raise FQLError('--resume auto needs --run-dir')
        return run_dir, 'auto'
    if run_dir not in (None, resume):
        raise FQLError('--resume names the run folder; leave out --run-dir')
    return resume, 'always'


def check_processes(processes: Processes, run_dir: Path | None, resume: Path | None) -> None:
    """Raise FQLError if the settings of several processes make no sense.

    They must also name a folder that all of them take.
    """
    number, count = processes.process_id, processes.num_processes
    if not processes.coordinator:
        if (number, count) != (0, 1):
            raise FQLError('--num-processes and --process-id need --coordinator')
        return
    if run_dir is None and resume is None:
        raise FQLError('several processes need --run-dir, or --resume: all of them use one folder')
    _, _, port = processes.coordinator.rpartition(':')
    if processes.coordinator != 'auto' and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise FQLError(
            f'--coordinator must be HOST:PORT, such as 10.0.0.1:1234, or auto, '
            f'not {processes.coordinator}'
        )
    if not 0 <= number < count:
        raise FQLError(f'--process-id must lie in [0, {count - 1}], not {number}')
