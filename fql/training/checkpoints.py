"""Checkpoints of the whole training state, through Orbax.

A checkpoint is a folder named by its step. Orbax writes it in the background and commits it by a
rename; then it is sealed here with a checksum of every file, since Orbax itself keeps none. What
was damaged later is found when it is read, and the newest sound checkpoint is used instead.
"""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_pipeline.files import is_temporary, write_json
from encoders.leaves import describe_leaves, leaf_differences
from fql.devices import wait_for_all_processes
from fql.errors import FQLError, first_line
from fql.learner import Params, TrainState

logging.getLogger('absl').setLevel(logging.ERROR)

COMMITTED = 'commit_success.txt'
CHECKSUMS = 'checksums.json'


def finished_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder` that were written to their end, ascending."""
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if path.name.isdigit() and (path / COMMITTED).exists()
    )


class CheckpointWriter:
    """Saves training states; a context manager, which waits for the last save when left.

    Kept are the latest `keep_latest`, the best, and those of every `keep_interval` updates (0: none
    for ever). The online parameters are an item of their own (`params`), so that
    evaluation reads no optimiser state; the rest of the state is `training`.
    """

    def __init__(
        self,
        folder: Path,
        keep_latest: int,
        keep_interval: int = 0,
        successes: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        """Opens `folder`, which is made if need be.

        Args:
            successes: gives the success of each step that was evaluated so far, NaN where there is
                none. Asked whenever a checkpoint may have to go, since an evaluation can end after
                its checkpoint was saved: one made again at a resume, or one of a watcher.
        """
        policies = ocp.checkpoint_managers
        preserve: list[Any] = [policies.LatestN(keep_latest), _Best(successes)]
        if keep_interval:
            preserve.append(policies.EveryNSteps(keep_interval))
        self._folder = folder.absolute()
        with self._faults('open'):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    cleanup_tmp_directories=True,
                    preservation_policy=policies.AnyPreservationPolicy(preserve),
                ),
            )
        self._sealer = ThreadPoolExecutor(max_workers=1)
        self._sealing: Future[None] | None = None
        self._unsealed: int | None = None

    def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Saves a state under its step, in the background, unless that was done already.

        Args:
            state: may be donated to the next update as soon as this returns.
            metadata: JSON values kept beside it.

        Raises:
            FQLError: this save or the one before it failed.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()
        params, training = _split(state)
        metadata = {**metadata, 'leaves': describe_leaves(state)}
        with self._faults(f'save step {step:,}'):
            _check_writable(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    training=ocp.args.StandardSave(training),
                    # Serialised later by Orbax: a copy, taken now.
                    metadata=ocp.args.JsonSave(json.loads(json.dumps(metadata))),
                ),
                force=True,
            )
        self._unsealed = step

    def poll(self) -> None:
        """To be called after every update: raises what went wrong in the background, and seals.

        Raises:
            FQLError: a save failed.
        """
        if self._manager.is_saving_in_progress():
            return
        with self._faults('save'):
            self._manager.wait_until_finished()
            if self._unsealed is not None and jax.process_index() == 0:
                step = self._folder / str(self._unsealed)
                self._sealing = self._sealer.submit(seal, step)
            self._unsealed = None
            if self._sealing is not None and self._sealing.done():
                sealing, self._sealing = self._sealing, None
                sealing.result()

    def wait(self) -> None:
        """Waits until the save under way is written and sealed.

        Raises:
            FQLError: it failed.
        """
        with self._faults('save'):
            self._manager.wait_until_finished()
        self.poll()
        if self._sealing is not None:
            with self._faults('save'):
                self._sealing.result()

    @contextmanager
    def _faults(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise FQLError(
                f'cannot {action} in {self._folder}: {first_line(error)} '
                f'(finished checkpoints there: {finished_steps(self._folder)})'
            ) from error

    def __enter__(self) -> 'CheckpointWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
            self._manager.close()
        except Exception:
            # An error that is on its way out must not be replaced by one met in closing.
            if kind is None:
                raise
        finally:
            self._sealer.shutdown()


@dataclass(frozen=True)
class _Best:
    """Orbax's policy that keeps the checkpoint of the highest success, of equal ones the latest.

    Orbax's own policy knows only metrics that were given with a save, and these never change.
    """

    successes: Callable[[], Mapping[int, float]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        found = self.successes()
        ranks = {
            checkpoint.step: (found[checkpoint.step], checkpoint.step)
            for checkpoint in checkpoints
            if math.isfinite(found.get(checkpoint.step, math.nan))
        }
        best = max(ranks, key=lambda step: ranks[step], default=None)
        return [checkpoint.step == best for checkpoint in checkpoints]


def seal(step_folder: Path) -> None:
    """Writes a checksum of every file of a committed checkpoint beside them."""
    write_json(step_folder / CHECKSUMS, _checksums(step_folder), indent=1)


def find_damage(step_folder: Path) -> str | None:
    """What is wrong with a committed checkpoint, as far as its checksums tell; None if nothing.

    One that was killed between commit and seal has no checksums and counts as sound.

    Raises:
        FQLError: its files cannot be read, which tells nothing of what is in them.
    """
    path = step_folder / CHECKSUMS
    if not path.exists():
        return None
    try:
        expected = json.loads(path.read_text())
        found = _checksums(step_folder)
    except OSError as error:
        raise FQLError(f'{step_folder} cannot be read: {error}') from error
    except ValueError as error:
        return f'{path.name} cannot be checked: {error}'
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f'{name} is missing'
        if expected.get(name) != found[name]:
            return f'{name} was altered'
    return None


def _checksums(step_folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(step_folder.rglob('*')):
        if path.is_file() and path.name != CHECKSUMS and not is_temporary(path):
            with path.open('rb') as file:
                name = path.relative_to(step_folder).as_posix()
                digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return digests


class CheckpointReader:
    """Reads checkpoints, also while another process writes them."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder`.

        Raises:
            FQLError: there is no such folder.
        """
        if not folder.is_dir():
            raise FQLError(f'no checkpoints in {folder}')
        self._folder = folder.absolute()
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def find(self, step: int | None, notify: Callable[[str], None] | None = None) -> int:
        """`step` if it is there and sound; the newest sound one if None.

        Args:
            step: which checkpoint.
            notify: told of damaged checkpoints that are newer than the one found.

        Raises:
            FQLError: there is none, or it is damaged; names the steps there are.
        """
        steps = finished_steps(self._folder)
        if not steps:
            raise FQLError(f'no finished checkpoint in {self._folder}')
        if step is not None and step not in steps:
            raise FQLError(f'no checkpoint of step {step} in {self._folder}; there are {steps}')
        damage: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            fault = find_damage(self._folder / str(candidate))
            if fault is None:
                if notify is not None:
                    for newer, damaged in damage.items():
                        notify(f'checkpoint of step {newer:,} is damaged ({damaged}): passed over')
                return candidate
            damage[candidate] = fault
        faults = '; '.join(f'step {candidate}: {fault}' for candidate, fault in damage.items())
        raise FQLError(f'damaged checkpoint in {self._folder}: {faults}; there are {steps}')

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state saved at `step`, with the shapes, dtypes and shardings of `abstract`.

        Raises:
            FQLError: its leaves are others than those of `abstract`; names them.
        """
        self._check_leaves(abstract, step)
        params, training = _split(abstract)
        restored = self._restore(
            step,
            params=ocp.args.StandardRestore(params),
            training=ocp.args.StandardRestore(training),
        )
        return dataclasses.replace(abstract, params=restored['params'], **restored['training'])

    def restore_params(self, abstract: TrainState, step: int) -> Params:
        """The online parameters saved at `step`; reads nothing else.

        Raises:
            FQLError: as `restore`.
        """
        self._check_leaves(abstract, step)
        return self._restore(step, params=ocp.args.StandardRestore(abstract.params))['params']

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON values that were given to `save`, and `leaves`."""
        return self._restore(step, metadata=ocp.args.JsonRestore())['metadata']

    def _restore(self, step: int, **items: Any) -> Any:
        return self._checkpointer.restore(
            self._folder / str(step), args=ocp.args.Composite(**items)
        )

    def _check_leaves(self, abstract: TrainState, step: int) -> None:
        # Orbax casts another dtype in silence, and reports other shapes without saying where.
        differences = leaf_differences(self.metadata(step)['leaves'], describe_leaves(abstract))
        if differences:
            raise FQLError(
                f'checkpoint {self._folder / str(step)} is of another agent: {differences}'
            )


def restore_newest(
    folder: Path, abstract: TrainState, aside: Path
) -> tuple[TrainState | None, list[str]]:
    """The state of the newest sound checkpoint, for a run that goes on writing there.

    Damaged checkpoints that are newer are moved into the folder `aside`, once that one was read:
    the run will write those steps again.

    Returns:
        The state, None if no checkpoint was ever finished; and a line on each damaged one.

    Raises:
        FQLError: every checkpoint is damaged, one is of another agent, or one cannot be read for
            another reason than damage. Nothing was moved then.
    """
    damage: dict[int, str] = {}
    for step in reversed(finished_steps(folder)):
        path = folder / str(step)
        fault = find_damage(path)
        if fault is None:
            try:
                state = CheckpointReader(folder).restore(abstract, step)
            except FQLError:
                raise
            except Exception as error:  # Orbax raises whatever the damage leads to.
                if (path / CHECKSUMS).exists():
                    raise FQLError(
                        f'{path} cannot be read, though its files are as they were written: '
                        f'{type(error).__name__}: {first_line(error)}'
                    ) from error
                fault = f'cannot be read: {type(error).__name__}'
            else:
                return state, [_move_aside(folder, *damaged, aside) for damaged in damage.items()]
        damage[step] = fault
    if damage:
        faults = '; '.join(f'step {step:,}: {fault}' for step, fault in damage.items())
        raise FQLError(f'no sound checkpoint is left in {folder}: {faults}')
    return None, []


def _move_aside(folder: Path, step: int, fault: str, aside: Path) -> str:
    """Moves a damaged checkpoint out of the way of the one that will be written; says so."""
    target = aside / f'{step}-{time.strftime("%Y%m%d-%H%M%S")}'
    wait_for_all_processes(f'judged checkpoint {step}')
    if jax.process_index() == 0:
        aside.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
    wait_for_all_processes(f'moved checkpoint {step}')
    return f'checkpoint of step {step:,} is damaged ({fault}); moved to {target}'


def _check_writable(folder: Path, nbytes: int) -> None:
    """Raises OSError if `nbytes` can surely not be written: Orbax would wait minutes for threads
    that never answer, and tell at its next save.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(f'disk full: {nbytes:,} bytes to write, {free:,} free')
    with tempfile.TemporaryDirectory(prefix='.probe-', dir=folder) as probe:
        Path(probe, 'file').write_bytes(b'probe')


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    training = {
        'step': state.step,
        'target_params': state.target_params,
        'opt_state': state.opt_state,
        'key': state.key,
    }
    return state.params, training
