"""Checkpoints of the whole training state, through Orbax.

A checkpoint is a folder named by its step. Orbax writes it in the background under another name.
There it gets a checksum of every file, since Orbax keeps none, and is synced; then it is renamed
into its place. So a folder named by a step is whole, or was damaged later. Damage is found when it
is read, and the newest sound checkpoint is used instead.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from data_pipeline.errors import first_line
from data_pipeline.files import sync_path
from data_pipeline.schema import from_json
from encoders.leaves import describe_leaves, leaf_differences
from fql.devices import wait_for_all_processes
from fql.errors import FQLError
from fql.learner import Params, TrainState
from fql.runs.checkpoint_files import find_damage, locked_checkpoint, write_checksums
from fql.runs.run_folder import check_path, finished_steps, steps_to_read

# Orbax logs the traceback of a failed save, which is raised here too.
logging.getLogger('absl').setLevel(logging.CRITICAL)

_UNFINISHED = '.unfinished-'
"""Prefix of the names of folders that are being written or deleted."""


class SaveError(FQLError):
    """A checkpoint cannot be written."""


@dataclass(frozen=True)
class _Metadata:
    """The description of a checkpoint.

    Attributes:
        step: its update.
        identity: of its run.
        leaves: `describe_leaves` of its state.
        given: the metadata given to `CheckpointWriter.save`.
    """

    step: int
    identity: Mapping[str, Any]
    leaves: Mapping[str, str]
    given: Mapping[str, Any]


@dataclass(frozen=True)
class _Versions:
    """Versions of packages, by name."""

    versions: Mapping[str, str]


class CheckpointWriter:
    """Writer of training states; a context manager, which waits for the last save when left.

    It keeps the latest `keep_latest`, the best, and all those of every `keep_interval` updates
    (0: none). One that is out of date while it is read is deleted after a later save. The online
    parameters are a separate item (`params`), so that evaluation reads no optimiser state; the rest
    of the state is `training`.
    """

    def __init__(
        self,
        folder: Path,
        keep_latest: int,
        keep_interval: int = 0,
        successes: Callable[[], Mapping[int, float]] = dict,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Open `folder`, creating it if needed; remove what a killed process left there.

        Args:
            successes: returns the success of each step evaluated so far, NaN where there is none.
                Called, in a thread of the writer, whenever a checkpoint may be deleted: an
                evaluation can end after its checkpoint was saved, if a resumed run repeats it or a
                watcher makes it.
            identity: JSON values that say whose checkpoints these are; see `CheckpointReader`.
        """
        self._folder = folder.absolute()
        self._keep_latest, self._keep_interval = keep_latest, keep_interval
        self._successes = successes
        self._identity = identity or {}
        with self._faults('open'):
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                for leftover in self._folder.glob(f'{_UNFINISHED}*'):
                    _delete(leftover)
            wait_for_all_processes('checkpoints')
            self._steps = set(finished_steps(self._folder))
        # In the background, a failure to make the folder would leave threads that wait for it for
        # minutes.
        options = ocp.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(async_options=options)
        )
        self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)
        self._finisher = ThreadPoolExecutor(max_workers=1)
        self._finishing: Future[None] | None = None

    def save(self, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Save a state under its step, in the background, unless that was done already.

        Args:
            state: may be donated to the next update as soon as this returns.
            metadata: JSON values kept beside it.

        Raises:
            SaveError: this save or the one before it failed.
        """
        step = int(state.step)
        if step in self._steps:
            return
        self.wait()
        params, training = _split(state)
        described = _Metadata(step, self._identity, describe_leaves(state), metadata)
        with self._faults(f'save update {step:,}'):
            _check_writable(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._checkpointer.save(
                self._unfinished(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    training=ocp.args.StandardSave(training),
                    # Serialised later by Orbax: a copy, taken now.
                    metadata=ocp.args.JsonSave(json.loads(json.dumps(vars(described)))),
                ),
            )
        self._steps.add(step)
        self._finishing = self._finisher.submit(self._finish, step)

    def poll(self) -> None:
        """To be called after every update: raises what went wrong in the background.

        Raises:
            SaveError: a save failed.
        """
        if self._finishing is not None and self._finishing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the save under way is finished.

        Raises:
            SaveError: it failed.
        """
        if self._finishing is not None:
            finishing, self._finishing = self._finishing, None
            with self._faults('save'):
                finishing.result()

    def _finish(self, step: int) -> None:
        """Wait for Orbax, put the checkpoint into its place, and delete those out of date."""
        self._checkpointer.wait_until_finished()
        if jax.process_index() != 0:
            return
        unfinished = self._unfinished(step)
        write_checksums(unfinished)
        for path in unfinished.rglob('*'):
            sync_path(path)
        sync_path(unfinished)
        os.rename(unfinished, self._folder / str(step))
        sync_path(self._folder)
        for old in self._out_of_date():
            with locked_checkpoint(self._folder / str(old), shared=False) as is_free:
                if not is_free:  # It is deleted after a later save.
                    continue
                # Renamed first, so that a half-deleted folder is no checkpoint.
                os.rename(self._folder / str(old), self._unfinished(old))
            _delete(self._unfinished(old))

    def _unfinished(self, step: int) -> Path:
        return self._folder / f'{_UNFINISHED}{step}'

    def _out_of_date(self) -> list[int]:
        """Steps of the checkpoints to delete."""
        steps = finished_steps(self._folder)
        kept = set(steps[-self._keep_latest :])
        if self._keep_interval:
            kept |= {step for step in steps if step and step % self._keep_interval == 0}
        found = self._successes()
        ranks = {
            step: (found[step], step) for step in steps if math.isfinite(found.get(step, math.nan))
        }
        if ranks:  # The latest of equal ones.
            kept.add(max(ranks, key=lambda step: ranks[step]))
        return [step for step in steps if step not in kept]

    @contextmanager
    def _faults(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SaveError(
                f'cannot {action} in {self._folder}: {first_line(error)} '
                f'(finished checkpoints there: {finished_steps(self._folder)})'
            ) from error

    def __enter__(self) -> 'CheckpointWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
            self._checkpointer.close()
        except Exception:
            # An error that is already being raised must not be replaced by one from closing.
            if kind is None:
                raise
        finally:
            self._finisher.shutdown()


def rows_written(folder: Path, step: int) -> Mapping[str, int]:
    """How many rows each metrics file had when a checkpoint was saved; none without it.

    All processes have to call it, as Orbax waits for all of them.
    """
    if step not in finished_steps(folder):
        return {}
    return CheckpointReader(folder).metadata(step).get('rows', {})


def _delete(unfinished: Path) -> None:
    """Delete a folder; on NFS, what a reader still has open remains, until a later start."""
    shutil.rmtree(unfinished, ignore_errors=True)


class CheckpointReader:
    """Reader of checkpoints, also while another process writes them."""

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        """Open `folder`.

        Args:
            identity: what was given to the `CheckpointWriter` of the run; a checkpoint of another
                one is refused. `run_id` says which run it is, the rest how it was set.
        """
        check_path(folder)
        self._folder = folder.absolute()
        self._identity = identity or {}
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def find(self, step: int | None, notify: Callable[[str], None] | None = None) -> int:
        """`step` if it is there and sound; the newest sound one if None.

        Args:
            step: which checkpoint.
            notify: called with a line on each damaged checkpoint that is newer than the one found.

        Raises:
            FQLError: there is none, or it is damaged, or not of this run; names the steps there
                are.
        """
        found, damage = self.search(step)
        if notify is not None:
            for newer, fault in damage.items():
                notify(f'checkpoint of update {newer:,} is damaged ({fault}): passed over')
        return found

    @contextmanager
    def reading(
        self, step: int | None, notify: Callable[[str], None] | None = None
    ) -> Iterator[int]:
        """Inside, the checkpoint that `find` returns is not deleted by its trainer.

        Where the file system has no locks, it may be.

        Raises:
            FQLError: as `find`.
        """
        while True:
            found = self.find(step, notify)
            folder = self._folder / str(found)
            with locked_checkpoint(folder, shared=True):
                if folder.exists():  # Else it was deleted before it was locked.
                    yield found
                    return

    def search(self, step: int | None) -> tuple[int, dict[int, str]]:
        """The result of `find`, and what is wrong with each newer checkpoint.

        Raises:
            FQLError: as `find`.
        """
        steps = steps_to_read(self._folder, step)
        damage: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            fault = find_damage(self._folder / str(candidate))
            if fault is None:
                self._check_identity(candidate)
                return candidate, damage
            if not (self._folder / str(candidate)).exists():  # Deleted by the trainer meanwhile.
                return self.search(step)
            damage[candidate] = fault
        faults = '; '.join(f'update {candidate}: {fault}' for candidate, fault in damage.items())
        raise FQLError(f'damaged checkpoint in {self._folder}: {faults}; there are {steps}')

    def restore(self, abstract: TrainState, step: int) -> TrainState:
        """The state saved at `step`, with the shapes, dtypes and shardings of `abstract`.

        Raises:
            FQLError: its leaves differ from those of `abstract`; names them. Or Orbax cannot
                read it.
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

    def metadata(self, step: int) -> Mapping[str, Any]:
        """The JSON values that were given to `save`."""
        return self._described(step).given

    def versions(self, step: int) -> Mapping[str, str]:
        """Versions of the packages that the checkpoint was made with.

        Raises:
            FQLError: it does not name them.
        """
        try:
            return from_json(_Versions, {'versions': self.metadata(step).get('versions')}).versions
        except ValueError as error:
            raise FQLError(f'{self._folder / str(step)}: metadata: {error}') from None

    def _described(self, step: int) -> _Metadata:
        values = self._restore(step, metadata=ocp.args.JsonRestore())['metadata']
        try:
            return from_json(_Metadata, values)
        except ValueError as error:
            raise FQLError(f'{self._folder / str(step)}: metadata: {error}') from None

    def _restore(self, step: int, **items: Any) -> Any:
        path = self._folder / str(step)
        try:
            return self._checkpointer.restore(path, args=ocp.args.Composite(**items))
        except Exception as error:
            if not path.exists():
                message = f'{path} was deleted while it was read, as by its trainer; try again'
                raise FQLError(message) from error
            raise FQLError(
                f'{path} cannot be read, though its files are as they were written: '
                f'{type(error).__name__}: {first_line(error)}'
            ) from error

    def _check_identity(self, step: int) -> None:
        path, described = self._folder / str(step), self._described(step)
        if described.step != step:
            raise FQLError(
                f'{path} holds the checkpoint of update {described.step:,}, not of this one; '
                'move it away'
            )
        if not self._identity:
            return
        stored, expected = described.identity, self._identity
        if stored.get('run_id') != expected['run_id']:
            raise FQLError(f'{path} is a checkpoint of another run; move it away')
        if differences := [
            f'{name} is {expected.get(name)!r}, was {stored.get(name)!r}'
            for name in {**stored, **expected}
            if stored.get(name) != expected.get(name)
        ]:
            raise FQLError(
                f'the settings of {self._folder.parent} were edited since {path} was written: '
                f'{"; ".join(differences)}; undo these edits'
            )

    def _check_leaves(self, abstract: TrainState, step: int) -> None:
        # Orbax silently casts another dtype, and reports other shapes without saying where.
        differences = leaf_differences(self._described(step).leaves, describe_leaves(abstract))
        if differences:
            raise FQLError(
                f'checkpoint {self._folder / str(step)} is of another agent: {differences}'
            )


def _check_writable(folder: Path, nbytes: int) -> None:
    """Raise OSError early if `nbytes` can surely not be written."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(f'disk full: {nbytes:,} bytes to write, {free:,} free')
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as probe:
        Path(probe, 'file').write_bytes(b'probe')


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    training = {
        'step': state.step,
        'target_params': state.target_params,
        'opt_state': state.opt_state,
        'key': state.key,
    }
    return state.params, training
