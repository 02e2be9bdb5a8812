"""The loop of a run: batches through updates, with logs, evaluations and checkpoints."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fql.agent import agent_networks
from fql.augmentation import augment_frames
from fql.batch import batch_from_frames
from fql.checkpointing import CheckpointWriter
from fql.config import config_to_dict
from fql.devices import local_copy, put_batch
from fql.env_workers import EnvWorkers
from fql.errors import FQLError
from fql.interruption import EXIT_CODE, Interrupted, Interruption
from fql.losses import Metrics
from fql.metrics_log import MetricsLog, read_csv
from fql.plots import plot_learning_curve
from fql.policies import Act, make_act, make_policy
from fql.run_folder import RunFolder, RunSpec, versions
from fql.train_state import TrainState
from fql.update import update, validation_metrics
from scripts.progress import progress_bar
from scripts.rollouts import VIDEO_EPISODES, evaluate_with_progress, record_evaluation

LOADED_FIELDS = ('frames', 'actions', 'rewards', 'masks')

Arrays = dict[str, np.ndarray]
Batches = Iterator[Arrays]


class NotFiniteError(FQLError):
    """The loss of an update is NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Trainer:
    """A run's collaborators, and the loop that uses them.

    Of several processes only the first evaluates and logs; the others have no `workers` and no
    logs.
    """

    spec: RunSpec
    mesh: Mesh
    folder: RunFolder
    workers: EnvWorkers | None
    writer: CheckpointWriter
    train_log: MetricsLog | None
    eval_log: MetricsLog | None
    interruption: Interruption

    def train(
        self,
        state: TrainState,
        batches: Batches,
        val_batches: Batches | None,
        is_evaluation_missing: bool,
    ) -> int:
        """Updates until `config.steps`; returns the exit code.

        Args:
            state: where to start.
            batches: from the update of that step on.
            val_batches: of the validation split, if there is one.
            is_evaluation_missing: whether the evaluation due at that step is still to be made.

        Raises:
            NotFiniteError: a loss was NaN or infinite; the state is not saved then.
            FQLError: a save failed, or an environment's worker.
        """
        config = self.spec.config
        train_step, validate = make_train_step(self.spec), make_validation(self.spec)
        act = make_act(agent_networks(self.spec), config.agent, 'one_step')
        start, began = int(state.step), time.monotonic()
        success = None  # of an evaluation at the current step
        arrays: Arrays = {}
        metrics: Metrics = {}
        try:
            with progress_bar('train', 'update', config.steps, initial=start) as bar:
                if is_evaluation_missing:
                    success = self._evaluate(act, state)
                for step in range(start + 1, config.steps + 1):
                    following = next(batches)
                    # Waits for the update before: the host must not run ahead of a device with
                    # batches that fill its memory.
                    self._check_finite(step - 1, metrics, arrays)
                    arrays = {name: following[name] for name in LOADED_FIELDS}
                    state, metrics = train_step(state, put_batch(arrays, self.mesh))
                    success = None
                    bar.update()
                    is_log_due, is_evaluation_due, is_save_due = (
                        is_due(step, interval, config.steps)
                        for interval in (
                            config.log_interval,
                            config.eval_interval,
                            config.save_interval,
                        )
                    )
                    if is_log_due or is_evaluation_due or is_save_due:
                        self._check_finite(step, metrics, arrays)
                    if is_log_due:
                        if val_batches is not None:
                            arrays_val = next(val_batches)
                            batch = {name: arrays_val[name] for name in LOADED_FIELDS}
                            metrics |= validate(state, put_batch(batch, self.mesh))
                        self._log_metrics(step, metrics)
                    if is_evaluation_due:
                        success = self._evaluate(act, state)
                    if is_save_due:
                        self._save(state, success)
                    self.writer.poll()
                    self.interruption.raise_if_requested(step)
        except Interrupted:
            self._save(state, success)
            self.writer.wait()
            self._print(
                f'stopped; step {int(state.step):,} is saved. '
                f'Continue with: fql train --resume {self.folder.path}'
            )
            return EXIT_CODE
        except NotFiniteError:
            raise
        except Exception:
            # What can be saved is saved; the fault to be told is the first one.
            with suppress(Exception):
                self._save(state, success)
                self.writer.wait()
            raise
        self.writer.wait()
        if self.train_log is not None:
            plot_learning_curve(self.folder, config.task)
        self._print(self._end_summary(config.steps - start, time.monotonic() - began))
        return 0

    def _check_finite(self, step: int, metrics: Metrics, arrays: Arrays) -> None:
        """Waits for an update and stops the run if its loss is NaN or infinite."""
        if not metrics or math.isfinite(float(metrics['loss'])):
            return
        losses = {name: float(value) for name, value in metrics.items()}
        if jax.process_index() == 0:
            self.folder.non_finite.mkdir(exist_ok=True)
            np.savez(self.folder.non_finite / f'step-{step}.npz', allow_pickle=False, **arrays)
            path = self.folder.non_finite / f'step-{step}.json'
            path.write_text(json.dumps({name: repr(v) for name, v in losses.items()}, indent=1))
        wrong = [f'{name} = {value}' for name, value in losses.items() if not math.isfinite(value)]
        raise NotFiniteError(
            f'the loss of step {step:,} is not finite ({", ".join(wrong)}); its batch and losses '
            f'are in {self.folder.non_finite}; the checkpoints before it are kept'
        )

    def _log_metrics(self, step: int, metrics: Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self.train_log is not None:
            self.train_log.write(step, values)

    def _evaluate(self, act: Act, state: TrainState) -> float | None:
        """Evaluates in the first process and returns the success there, None elsewhere."""
        params = local_copy(state.params, self.mesh)
        if self.workers is None or self.eval_log is None:
            return None
        config, step = self.spec.config, int(state.step)
        is_alone = jax.process_count() == 1
        result = evaluate_with_progress(
            self.workers,
            make_policy(act, params, config.eval_seed),
            config.eval_episodes,
            config.eval_seed,
            label=f'evaluate step {step:,}',
            record_episodes=VIDEO_EPISODES if self.spec.images else 0,
            between=self.interruption.raise_if_noted if is_alone else lambda: None,
        )
        record_evaluation(self.folder, self.eval_log, step, result)
        tqdm.write(f'step {step:,}: success {result.success:.1%} ({config.eval_episodes} episodes)')
        return result.success

    def _save(self, state: TrainState, success: float | None) -> None:
        metadata = {'config': config_to_dict(self.spec.config), 'versions': versions()}
        self.writer.save(state, metadata, success)

    def _print(self, text: str) -> None:
        if jax.process_index() == 0:
            print(text, flush=True)

    def _end_summary(self, updates: int, seconds: float) -> str:
        successes = [
            f'{int(row["step"]):,}: {float(row["evaluation/success"]):.1%}'
            for row in read_csv(self.folder.eval_csv)
        ]
        lines = {
            'done': f'{updates:,} updates in {seconds / 60:.1f} min, evaluations included',
            'success': ', '.join(successes) or 'not evaluated',
            'curves': str(self.folder.learning_curve),
            'videos': str(self.folder.videos) if self.folder.videos.exists() else 'none',
            'run folder': str(self.folder.path),
        }
        return '\n'.join(f'{name:>13}: {text}' for name, text in lines.items())


def make_train_step(
    spec: RunSpec,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The jitted step from the loader's arrays; the state given to it is used up (donated)."""
    networks = agent_networks(spec)

    def train_step(state: TrainState, arrays: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        frames = augment_frames(arrays['frames'], spec.config.augmentation, state.key, state.step)
        batch = batch_from_frames({**arrays, 'frames': frames})
        return update(networks, spec.config.agent, state, batch)

    return jax.jit(train_step, donate_argnums=0)


def make_validation(
    spec: RunSpec,
) -> Callable[[TrainState, dict[str, jax.Array]], Metrics]:
    """The jitted metrics of the loader's arrays, without a step."""
    networks = agent_networks(spec)

    def validate(state: TrainState, arrays: dict[str, jax.Array]) -> Metrics:
        return validation_metrics(networks, spec.config.agent, state, batch_from_frames(arrays))

    return jax.jit(validate)


def is_due(step: int, interval: int, last: int) -> bool:
    """Whether something made every `interval` updates (0: never), and after the last, is due."""
    return interval > 0 and (step % interval == 0 or step == last)
