"""The checkpoints of a run, read with what the run's folder says of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from fql.compiled import abstract_state
from fql.devices import one_device_mesh, wait_for_all_processes
from fql.learner import Params, TrainState
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import RunSpec, read_identity


@contextmanager
def open_checkpoint(
    folder: RunFolder,
    spec: RunSpec,
    step: int | None,
    notify: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, CheckpointReader, TrainState]]:
    """Inside, a run's checkpoint can be restored onto one device, and is not deleted.

    Args:
        spec: of the folder.
        step: which checkpoint; None for the newest that is sound.
        notify: called with a line about damaged checkpoints that are newer than the one taken.

    Yields:
        The checkpoint's step, the reader, and the shapes of the state.

    Raises:
        FQLError: there is none, it is damaged, or was made with other settings than the folder's.
    """
    reader = CheckpointReader(folder.checkpoints, read_identity(folder.spec))
    with reader.reading(step, notify) as found:
        # Only now are the settings known to be those of the checkpoint.
        yield found, reader, abstract_state(make_learner(spec), one_device_mesh())


def restore_params(
    folder: RunFolder,
    spec: RunSpec,
    step: int | None,
    notify: Callable[[str], None] | None = None,
) -> tuple[int, Params]:
    """The step and the online parameters of a run's checkpoint; see `open_checkpoint`."""
    with open_checkpoint(folder, spec, step, notify) as (found, reader, abstract):
        return found, reader.restore_params(abstract, found)


def restore_newest(
    folder: RunFolder, spec_file: Path, abstract: TrainState
) -> tuple[TrainState | None, list[str]]:
    """The state of the newest sound checkpoint, for a run that continues there.

    Newer, damaged checkpoints are moved into `RunFolder.damaged` once that one was read: the run
    will write those steps again.

    Args:
        spec_file: of the folder; says what the checkpoint must be of, where it exists.
        abstract: shapes and shardings of the state.

    Returns:
        The state, None if no checkpoint was ever finished; and a line on each damaged one.

    Raises:
        FQLError: every checkpoint is damaged, one is of another run or agent, or one cannot be read
            for another reason than damage. Nothing was moved then.
    """
    if not finished_steps(folder.checkpoints):
        return None, []
    identity = read_identity(spec_file) if spec_file.exists() else None
    reader = CheckpointReader(folder.checkpoints, identity)
    step, damage = reader.search(None)
    state = reader.restore(abstract, step)
    return state, [_move_away(folder, *newer) for newer in damage.items()]


def _move_away(folder: RunFolder, step: int, fault: str) -> str:
    """Move a damaged checkpoint out of the way of the one that will be written; say so."""
    target = folder.damaged / f'{step}-{time.strftime("%Y%m%d-%H%M%S")}'
    wait_for_all_processes(f'judged checkpoint {step}')
    if jax.process_index() == 0:
        folder.damaged.mkdir(exist_ok=True)
        (folder.checkpoints / str(step)).rename(target)
    wait_for_all_processes(f'moved checkpoint {step}')
    return f'checkpoint of update {step:,} is damaged ({fault}); moved to {target}'
