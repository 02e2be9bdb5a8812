"""Starting and continuing a run of updates: the folder, and what must not be overwritten."""

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import first_line
from data_pipeline.files import is_temporary, write_json
from data_pipeline.store.frame_store import FrameStore
from fql.command import command
from fql.devices import differing_processes, wait_for_all_processes
from fql.errors import FQLError
from fql.runs.metrics_log import MetricsLog, Mirror, read_csv
from fql.runs.run_folder import (
    RunFolder,
    check_is_run,
    check_new_folder,
    check_path,
    finished_steps,
)
from fql.runs.run_lock import lock_run
from fql.runs.run_spec import read_object
from fql.settings.run_arguments import Resume, check_processes
from fql.settings.train_config import Processes, differing_fields


def check_run_folder(
    folder: RunFolder,
    config: Any,
    resume: Resume,
    read_config: Callable[[RunFolder], Any],
    name: str,
    last: int,
) -> None:
    """Raise FQLError if a run there would be overwritten, restarted, or continued differently.

    Args:
        config: of the requested run.
        read_config: the stored one of a folder.
        name: of the command that continues a run, 'train' or 'pretrain'.
        last: the last requested update.
    """
    check_path(folder.path)
    check_is_run(folder.path)
    # A run that was killed in its first moments leaves no more than this.
    is_new = not folder.path.exists() or all(
        path in (folder.lock, folder.data) or is_temporary(path) for path in folder.path.iterdir()
    )
    if is_new:
        check_new_folder(folder.path)
    if resume == 'never' and not is_new:
        resumed = command(name, '--resume', folder.path)
        way = f'continue it with {resumed}, or ' if folder.exists else ''
        raise FQLError(f'{folder.path} exists; {way}choose another --run-dir')
    if resume == 'never' or (resume == 'auto' and is_new):
        return
    if differences := differing_fields(read_config(folder), config):
        raise FQLError(f'{folder.path} was made with other settings: {"; ".join(differences)}')
    steps = finished_steps(folder.checkpoints)
    if not steps and (rows := read_csv(folder.train_csv) + read_csv(folder.eval_csv)):
        raise FQLError(
            f'{folder.path} has metrics up to update {max(int(row["step"]) for row in rows):,}, '
            f'but no checkpoint in {folder.checkpoints} to continue from (is a disk not mounted? '
            'was save-interval 0?); restore them, or start another run'
        )
    latest = max(steps, default=0)
    if latest > last:
        raise FQLError(
            f'{folder.path} is at update {latest:,} already, past the {last:,} asked for'
        )


def check_data(folder: RunFolder, store: FrameStore) -> None:
    """Raise FQLError if a run there was trained on other data than the store now holds."""
    if not folder.exists:
        return
    if not folder.data.exists():
        raise FQLError(
            f'{folder.path} has no {folder.data.name}, which says what data it was trained on; '
            'restore it, or start another run'
        )
    if read_object(folder.data) != store.checksums:
        raise FQLError(
            f'{folder.path} was trained on other data than {store.path} holds now '
            f'(checksums in {folder.data}); prepare that dataset again, or start another run'
        )


def check_processes_agree(config: Any, store: FrameStore) -> None:
    """Raise FQLError, in all processes, if they were given other settings, or read other data.

    Each would make other updates. All processes call this.
    """
    settings = {**dataclasses.asdict(config), 'data_dir': ''}
    text = json.dumps([settings, store.checksums], default=str)
    if others := differing_processes(text):
        raise FQLError(
            f'process {", ".join(map(str, others))} has other settings or other data than the '
            'first one; start all with the same command'
        )


@contextmanager
def claimed_folder(folder: RunFolder) -> Iterator[None]:
    """Inside, the run folder exists and is locked by the first process."""
    # All have looked at the folder before the first process makes it.
    wait_for_all_processes('checks')
    with ExitStack() as stack:
        if jax.process_index() == 0:
            folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_run(folder.lock, 'trainer'))
        wait_for_all_processes('run folder')
        yield


def write_description(folder: RunFolder, store: FrameStore, write_spec: Callable[[], None]) -> None:
    """Write what the run is and what data it is trained on; all processes call it.

    Args:
        write_spec: writes what the run is; the folder is a run from then on.
    """
    if jax.process_index() == 0:
        write_json(folder.data, store.checksums)
        write_spec()
    wait_for_all_processes('run described')


@dataclass(frozen=True)
class Logs:
    """Where metrics go; None in processes that write none."""

    updates: MetricsLog | None = None
    timing: MetricsLog | None = None
    evaluations: MetricsLog | None = None


def open_logs(
    stack: ExitStack,
    folder: RunFolder,
    start: int,
    written: Mapping[str, int],
    *,
    evaluates: bool = False,
    mirror: Mirror | None = None,
) -> Logs:
    """The logs of a run that continues from update `start`, until `stack` is left.

    Args:
        written: see `rows_written`, which all processes have to call.
        evaluates: whether the run makes evaluations.
        mirror: see `MetricsLog`.
    """

    def open_log(csv: Path, tensorboard: Path) -> MetricsLog:
        log = MetricsLog(csv, tensorboard, start, mirror, written.get(csv.name, 0))
        return stack.enter_context(log)

    return Logs(
        open_log(folder.train_csv, folder.train_tensorboard),
        open_log(folder.timing_csv, folder.timing_tensorboard),
        open_log(folder.eval_csv, folder.eval_tensorboard) if evaluates else None,
    )


def connect_processes(processes: Processes, run_dir: Path | None, resume: Path | None) -> None:
    """Make this process one of several that train together, if the settings say so.

    Raises:
        FQLError: the settings of the processes make no sense, no folder is named that all of them
            would take, or they do not find each other.
    """
    check_processes(processes, run_dir, resume)
    if not processes.coordinator:
        return
    coordinator, number = processes.coordinator, processes.process_id
    try:
        if coordinator == 'auto':
            jax.distributed.initialize()
        else:
            # By default, the first process would listen on all interfaces of its machine.
            place = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', coordinator)
            check_address(coordinator if number else place, is_own=number == 0)
            jax.distributed.initialize(
                coordinator, processes.num_processes, number, coordinator_bind_address=place
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise FQLError(f'--coordinator {coordinator}: {first_line(error)}') from error


def check_address(place: str, *, is_own: bool) -> None:
    """Raise OSError if HOST:PORT is unknown or, if `is_own`, nothing can listen there.

    JAX ends the process where it cannot listen.
    """
    host, _, port = place.rpartition(':')
    family, kind, _, _, address = socket.getaddrinfo(
        host.strip('[]'), int(port), type=socket.SOCK_STREAM
    )[0]
    if is_own:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
