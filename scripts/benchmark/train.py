"""`fql benchmark train`: the training loop against bare updates, and how soon it starts."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from data_pipeline.store.verification import Verification
from fql.compiled import initial_state
from fql.devices import put_batch
from fql.output import format_table
from fql.runs.checkpoints import CheckpointWriter
from fql.runs.run_learner import make_learner
from fql.settings.train_config import TrainConfig
from fql.training.loop import updates_in_call
from fql.training.training_data import load_training_data, spec_of, training_batches
from scripts.benchmark.args import BenchmarkTrain
from scripts.benchmark.json_report import write_json_report
from scripts.benchmark.measuring import make_trainer, run_fql, task_config
from scripts.benchmark.timing import median_ratio, take_turns


def run(args: BenchmarkTrain) -> None:
    """Measure, print a table, and write the numbers as JSON if asked to."""
    config = task_config(
        args.task,
        args.data_dir,
        steps=args.updates,
        updates_per_call=args.updates_per_call,
        log_interval=0,
        eval_interval=0,
        save_interval=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds = compare_loops(config, Path(folder), args.rounds)
        starts = measure_starts(config, Path(folder))
    report: dict[str, Any] = {
        'ms_per_update': {
            name: 1e3 * statistics.median(values) / args.updates for name, values in seconds.items()
        },
        'throughput_against_bare_updates': median_ratio(seconds, 'bare updates', 'fql train'),
        'first_update_s': starts,
        'seconds': seconds,
    }
    rows = [
        *((f'{name}, ms per update', f'{ms:.1f}') for name, ms in report['ms_per_update'].items()),
        ('throughput of fql train', f'{report["throughput_against_bare_updates"]:.1%}'),
        *((f'fql train --steps 1, {name}', f'{value:.1f} s') for name, value in starts.items()),
    ]
    print(format_table(['', 'measured'], rows))
    write_json_report(args.json, report)


def compare_loops(config: TrainConfig, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of `config.steps` updates, in a bare loop on one batch and by the trainer."""
    data = load_training_data(config)['train']
    spec = spec_of(data, config)
    with (
        CheckpointWriter(folder / 'checkpoints', keep_latest=1) as writer,
        Verification(folder, 'never') as verification,
    ):
        trainer = make_trainer(spec, folder, writer, verification)
        arrays = next(training_batches(data, config, 0))
        batch = put_batch({name: arrays[name] for name in trainer.fields}, trainer.mesh)
        # The loader runs ahead while the other way has its turn; one for each would start cold.
        batches = training_batches(data, config, 0)
        count = updates_in_call(config, 0, trainer.train_step.per_call)
        start = initial_state(make_learner(spec), config.seed, trainer.mesh)

        def bare_updates() -> None:
            state, before = jax.tree.map(jnp.copy, start), None
            for _ in range(config.steps // count):
                state, metrics = trainer.train_step(state, [batch] * count)
                # As many calls in flight as the trainer has: with all of them updates take longer.
                jax.block_until_ready(before)
                before = metrics
            jax.block_until_ready(state)

        def train() -> None:
            state = jax.tree.map(jnp.copy, start)
            trainer.train(state, batches, is_evaluation_missing=False)

        return take_turns({'bare updates': bare_updates, 'fql train': train}, rounds)


def measure_starts(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Seconds of a whole `fql train --steps 1`, first with an empty compilation cache."""
    settings = (
        *('--task', config.task, '--steps', '1', '--data-dir', config.data_dir),
        *('--log-interval', '0', '--eval-interval', '0', '--save-interval', '0'),
        *('--verify-data', 'never'),
    )
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache')}
    seconds = {}
    for name in ('without a compilation cache', 'with one'):
        began = time.perf_counter()
        run_fql('train', *settings, '--run-dir', str(folder / name), environment=environment)
        seconds[name] = time.perf_counter() - began
    return seconds
