"""The loop of a run: batches through updates, with logs, evaluations and checkpoints."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.errors import DamagedError
from data_pipeline.observations import flattened
from data_pipeline.store.verification import Verification
from fql.compiled import TrainStep
from fql.devices import not_finite, put_batch
from fql.errors import FQLError
from fql.learner import Metrics, TrainState
from fql.runs.checkpoints import CheckpointWriter, SaveError
from fql.runs.interruption import Interrupted, Interruption
from fql.runs.metrics_log import MetricsLog
from fql.runs.progress import count_from, progress_bar
from fql.runs.run_folder import RunFolder
from fql.stopping import EXIT_CODE
from fql.training.host_memory import GIVE_BACK_INTERVAL, give_back_freed_memory
from fql.training.verified_data import agree_on_verification

MAX_IN_FLIGHT = 2
"""Calls of the train step that the host may be ahead of the device; each holds its batches."""

MUST_BE_FINITE = ('loss', 'update/grad_norm')
"""Metrics of an update after which the parameters are finite if they were so before."""

HostBatch = dict[str, Any]
"""The loader's arrays of one update, by name; NumPy."""
Batches = Iterator[HostBatch]


class NotFiniteError(FQLError):
    """The loss of an update, its gradient, or the state after it is NaN or infinite."""


class Stopwatch:
    """Updates a second, without the work between them: logs, evaluations, saves."""

    def __init__(self) -> None:
        self._updates, self._seconds = 0, 0.0
        self._step, self._began = 0, math.nan

    def start(self, step: int) -> None:
        """Start timing: `step` updates are made, the next one begins."""
        self._step, self._began = step, time.perf_counter()

    def stop(self, step: int) -> None:
        """Stop timing: `step` updates are made. Without a start, nothing is counted."""
        if not math.isnan(self._began):
            self._updates += step - self._step
            self._seconds += time.perf_counter() - self._began
            self._began = math.nan

    def take_rate(self) -> float | None:
        """The rate of the updates since the last call; None if there were none."""
        rate = self._updates / self._seconds if self._updates else None
        self._updates, self._seconds = 0, 0.0
        return rate


class Schedule(Protocol):
    """The settings that determine when something is due; intervals are in updates, 0 for never."""

    @property
    def steps(self) -> int:
        """The last update."""

    @property
    def log_interval(self) -> int:
        """Between rows of metrics."""

    @property
    def eval_interval(self) -> int:
        """Between evaluations."""

    @property
    def save_interval(self) -> int:
        """Between checkpoints."""


Update = Callable[[TrainState, list[HostBatch]], TrainState]
"""Makes an update for each of the loader's batches; uses up the state."""


class Phase(Protocol):
    """The turns of a run: updates alone, or environment steps with updates.

    Attributes:
        title, unit: for the progress bar.
        done: units done.
    """

    title: str
    unit: str
    done: int

    @property
    def total(self) -> int:
        """Units to be done."""

    def advance(self, state: TrainState, update: Update) -> TrainState:
        """Make one turn, its updates by `update`."""

    def metadata(self) -> Mapping[str, Any]:
        """JSON values from which the phase continues after the last turn."""


@dataclass
class Updates:
    """Updates on existing batches, as many in a turn as one call makes."""

    schedule: Schedule
    batches: Batches
    per_call: int
    done: int
    title = 'train'
    unit = 'update'

    @property
    def total(self) -> int:
        """See `Phase`."""
        return self.schedule.steps

    def advance(self, state: TrainState, update: Update) -> TrainState:
        """See `Phase`."""
        count = updates_in_call(self.schedule, self.done, self.per_call)
        state = update(state, [next(self.batches) for _ in range(count)])
        self.done += count
        return state

    def metadata(self) -> Mapping[str, Any]:
        """Nothing: the state's step is enough."""
        return {}


class Calls:
    """Calls of the train step, whose losses are checked some calls later.

    Attributes:
        step: updates made.
        metrics: of the last call, (updates,) arrays.
    """

    def __init__(
        self,
        train_step: TrainStep,
        fields: Sequence[str],
        mesh: Mesh,
        folder: RunFolder,
        step: int,
    ) -> None:
        """No call was made since `step`; for the other arguments see `Trainer`."""
        self.step = step
        self.metrics: Metrics = {}
        self._train_step, self._fields, self._mesh, self._folder = train_step, fields, mesh, folder
        # Of each call that was not checked yet: the step before, metrics, batches.
        self._unchecked: deque[tuple[int, Metrics, list[HostBatch]]] = deque()

    def update(self, state: TrainState, batches: list[HostBatch]) -> TrainState:
        """See `Update`; raise NotFiniteError if an earlier one was not finite."""
        arrays = [{name: batch[name] for name in self._fields} for batch in batches]
        # The host runs ahead, but not with so many batches that they fill the memory.
        if len(self._unchecked) == MAX_IN_FLIGHT:
            self._check(*self._unchecked.popleft())
        on_device = tuple(put_batch(batch, self._mesh) for batch in arrays)
        state, self.metrics = self._train_step(state, on_device)
        self._unchecked.append((self.step, self.metrics, arrays))
        self.step += len(arrays)
        return state

    def check(self) -> None:
        """Wait for all calls; raise NotFiniteError if one was not finite."""
        while self._unchecked:
            self._check(*self._unchecked.popleft())

    def _check(self, step: int, metrics: Metrics, batches: list[HostBatch]) -> None:
        """Wait for the updates from `step` on; keep the batch of one that was not finite."""
        checked = np.stack([np.asarray(metrics[name]) for name in MUST_BE_FINITE])
        are_finite = np.isfinite(checked).all(axis=0)
        if are_finite.all():
            return
        place = int(np.argmin(are_finite))
        number = step + place + 1
        terms = {name: float(values[place]) for name, values in metrics.items()}
        folder = self._folder.non_finite
        folder.mkdir(exist_ok=True)
        part = f'-process-{jax.process_index()}' if jax.process_count() > 1 else ''
        path = folder / f'step-{number}'
        file = path.with_name(f'{path.name}{part}.npz')
        np.savez(file, allow_pickle=False, **flattened(batches[place]))
        if jax.process_index() == 0:
            text = json.dumps({name: repr(value) for name, value in terms.items()}, indent=1)
            path.with_suffix('.json').write_text(text)
        wrong = [f'{name} = {value}' for name, value in terms.items() if not math.isfinite(value)]
        raise NotFiniteError(
            f'update {number:,} is not finite ({", ".join(wrong)}); its batch and metrics are in '
            f'{folder}; earlier checkpoints are kept'
        )


@dataclass(frozen=True, eq=False)
class Trainer:
    """A run's collaborators, and the loop that uses them.

    Attributes:
        schedule: what is due when.
        mesh: the devices.
        folder: of the run; the batch of an update that is not finite is written there.
        fields: the loader's arrays that an update reads.
        train_step: see `fql.compiled.TrainStep`.
        validate: metrics of a batch of the validation split.
        val_batches: of the validation split, if there is one.
        evaluate: called with the state whenever an evaluation is due.
        metadata: JSON values kept with each checkpoint.
        writer: of checkpoints.
        verification: of the data; each checkpoint of an interval, and the last, waits for it.
        train_log: of metrics; None in all processes except the first.
        timing_log: of the updates a second; likewise.
        interruption: says when to stop.
        resume_command: the user's command after a stop.
        eval_log: of evaluations; None also where there are none.
    """

    schedule: Schedule
    mesh: Mesh
    folder: RunFolder
    fields: Sequence[str]
    train_step: TrainStep
    validate: Callable[[TrainState, dict[str, jax.Array]], Metrics]
    val_batches: Batches | None
    evaluate: Callable[[TrainState], object]
    metadata: Mapping[str, Any]
    writer: CheckpointWriter
    verification: Verification
    train_log: MetricsLog | None
    timing_log: MetricsLog | None
    interruption: Interruption
    resume_command: str
    eval_log: MetricsLog | None = None

    def train(
        self, state: TrainState, batches: Batches, is_evaluation_missing: bool
    ) -> tuple[TrainState, int]:
        """Update until `schedule.steps`, on `batches` from the state's step on; see `run`.

        The state before the first update is saved too, and the save is waited for: a disk fault
        shows at once, and where there are metrics, there is a checkpoint to continue from.
        """
        phase = Updates(self.schedule, batches, self.train_step.per_call, int(state.step))
        if phase.done == 0 and self.schedule.save_interval:
            self._save(state, phase)
            self.writer.wait()
        return self.run(state, phase, is_evaluation_missing)

    def run(
        self, state: TrainState, phase: Phase, is_evaluation_missing: bool
    ) -> tuple[TrainState, int]:
        """Make all turns of a phase; return the state and the exit code, 0 if it reached the end.

        Args:
            state: where to start.
            is_evaluation_missing: whether the evaluation due at that step is still to be made.

        Raises:
            NotFiniteError: a loss, a gradient or the state became NaN or infinite; the state is not
                saved then.
            DamagedError: the data are not what was written; the state is not saved then either.
            FQLError: a save failed, or an environment's worker.
        """
        schedule = self.schedule
        first = int(state.step)
        calls = Calls(self.train_step, self.fields, self.mesh, self.folder, first)
        watch = Stopwatch()
        try:
            with progress_bar(phase.title, phase.unit, phase.total, initial=phase.done) as bar:
                if is_evaluation_missing:
                    self.evaluate(state)
                while phase.done < phase.total:
                    before, done = calls.step, phase.done
                    state = phase.advance(state, calls.update)
                    if before == first < calls.step:  # It was compiled before.
                        calls.check()
                        count_from(bar, phase.done)
                        watch.start(calls.step)
                    else:
                        bar.update(phase.done - done)
                    due = due_after(schedule, before, calls.step)
                    if any(due):
                        calls.check()
                        watch.stop(calls.step)
                    self._check_data()
                    if due.log:  # Before what a stop may interrupt: that state is saved.
                        self._log(state, calls, watch.take_rate())
                    if due.save or calls.step == schedule.steps:
                        agree_on_verification(self.verification, self.interruption.raise_if_noted)
                    if due.evaluation:
                        self._check_state(state)
                        self.evaluate(state)
                    if due.save:
                        self._save(state, phase)
                    if any(due):
                        watch.start(calls.step)
                    if calls.step % GIVE_BACK_INTERVAL < calls.step - before:
                        give_back_freed_memory()
                    self.writer.poll()
                    self.interruption.raise_if_requested(calls.step)
                calls.check()
                self._check_state(state)
        except Interrupted:
            self._save_last(state, phase, calls)
            if jax.process_index() == 0:
                print(
                    f'stopped; update {int(state.step):,} is saved. '
                    f'Continue with: {self.resume_command}',
                    flush=True,
                )
            return state, EXIT_CODE
        except NotFiniteError:
            self._check_data()  # Damage would be the cause.
            raise
        except (DamagedError, SaveError):
            raise
        except Exception:
            # What can be saved is saved; the first fault is reported. A save needs all
            # processes, and the others do not know of the fault.
            if jax.process_count() == 1:
                with suppress(Exception):
                    self._save_last(state, phase, calls)
            raise
        self.writer.wait()
        return state, 0

    def _save_last(self, state: TrainState, phase: Phase, calls: Calls) -> None:
        """Save the state of a run that stops before its end, and wait for the save."""
        calls.check()
        self._check_data()
        self._save(state, phase)
        self.writer.wait()

    def _check_data(self) -> None:
        """Raise DamagedError if the data are known to be damaged."""
        if jax.process_count() == 1:  # Several stop together: see `agree_on_verification`.
            self.verification.check()

    def _save(self, state: TrainState, phase: Phase) -> None:
        """Save a state, after the rows of metrics that lead to it."""
        self._check_state(state)
        if self.train_log is not None:
            self.train_log.sync()
        rows: dict[str, int] = {}
        for log in (self.train_log, self.timing_log, self.eval_log):
            rows |= {} if log is None else log.rows
        self.writer.save(state, {**self.metadata, 'rows': rows, **phase.metadata()})

    def _check_state(self, state: TrainState) -> None:
        """Raise NotFiniteError if a number in the state is NaN or infinite.

        The metrics of an update do not show this: they are of the state before it.
        """
        wrong = not_finite(state)
        if wrong:
            raise NotFiniteError(
                f'the state after update {int(state.step):,} is not finite ({len(wrong)} arrays, '
                f'{wrong[0]} the first); it is not saved; earlier checkpoints are kept'
            )

    def _log(self, state: TrainState, calls: Calls, rate: float | None) -> None:
        """Write the last update's metrics, a batch's of the validation split, and the rate."""
        row = {name: values[-1] for name, values in calls.metrics.items()}
        if self.val_batches is not None:
            arrays = next(self.val_batches)
            batch = {name: arrays[name] for name in self.fields}
            row |= self.validate(state, put_batch(batch, self.mesh))
        values = {name: float(value) for name, value in jax.device_get(row).items()}
        if self.train_log is not None:
            self.train_log.write(calls.step, values)
        if self.timing_log is not None and rate is not None:
            self.timing_log.write(calls.step, {'timing/updates_per_second': rate})


class Due(NamedTuple):
    """What is due after an update."""

    log: bool
    evaluation: bool
    save: bool


def due_after(schedule: Schedule, before: int, step: int) -> Due:
    """What is due after one of the updates after `before`, up to `step`."""
    return Due(
        *(was_due(before, step, interval, schedule.steps) for interval in _intervals(schedule))
    )


def updates_in_call(schedule: Schedule, step: int, most: int) -> int:
    """How many updates the next call makes, after `step` updates, at most `most`.

    A call ends after an update after which a row, an evaluation or a checkpoint is due.
    """
    for count in range(1, most):
        if (
            any(is_due(step + count, interval, schedule.steps) for interval in _intervals(schedule))
            or step + count == schedule.steps
        ):
            return count
    return most


def was_due(before: int, step: int, interval: int, last: int) -> bool:
    """Whether `is_due` after one of the updates after `before`, up to `step`."""
    passed = interval > 0 and step // interval > before // interval
    return step > before and (passed or is_due(step, interval, last))


def is_due(step: int, interval: int, last: int) -> bool:
    """Whether something made every `interval` updates (0: never), and after the last, is due."""
    return interval > 0 and (step % interval == 0 or step == last)


def rows_logged(schedule: Schedule, step: int) -> int:
    """Rows of metrics, each with the next batch of the validation split, of the first updates.

    Args:
        step: at most `schedule.steps`, after which there is a row too.
    """
    interval = schedule.log_interval
    if not interval:
        return 0
    return step // interval + (step == schedule.steps and step % interval > 0)


def _intervals(schedule: Schedule) -> tuple[int, int, int]:
    return schedule.log_interval, schedule.eval_interval, schedule.save_interval
