"""`fql benchmark faults`: many kills of one run, and what saving costs."""

import json
import random
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from data_pipeline.data_dir import resolve_data_dir
from encoders.leaves import tree_digest
from fql.agent import abstract_state, initial_state
from fql.config import TrainConfig
from fql.devices import make_mesh, one_device_mesh
from fql.errors import FQLError
from fql.train_step import make_train_step
from fql.training.checkpoints import (
    CheckpointReader,
    CheckpointWriter,
    finished_steps,
)
from fql.training.progress import progress_bar
from fql.training.rollouts import recorded_steps
from fql.training.run_folder import RunFolder, RunSpec, read_spec
from scripts.benchmark.faults_args import BenchmarkFaults
from scripts.benchmark.measuring import FQL, ROOT, run_fql

SETTINGS = (
    *('--batch-size', '16', '--encoder', 'impala_debug', '--hidden-dims', '32', '32'),
    *('--eval-interval', '0', '--save-interval', '25', '--log-interval', '10'),
)
KILL_WITHIN_SECONDS = 2.0
SAVES = 5


def run(args: BenchmarkFaults) -> int:
    """Prints a report; the exit code is 0 only if the states agree."""
    data_dir = str(resolve_data_dir(args.data_dir))
    command = ['train', '--task', args.task, '--data-dir', data_dir, *SETTINGS]
    command += ['--steps', str(args.updates)]
    folder = args.folder.absolute()
    alone, killed = RunFolder(folder / 'alone'), RunFolder(folder / 'killed')
    print(f'1/3 a run of {args.updates:,} updates that is left alone', flush=True)
    run_fql(*command, '--run-dir', str(alone.path))
    print('2/3 the same run, killed and continued', flush=True)
    command += ['--run-dir', str(killed.path), '--resume', 'auto']
    moments = random.Random(args.seed)
    resumed_at = []
    with progress_bar('kills', 'kill', args.kills) as bar:
        for _ in range(args.kills):
            resumed_at.append(max(finished_steps(killed.checkpoints), default=0))
            # Rows up to there may be left of an update that has to be made again.
            logged = max(recorded_steps(killed.train_csv), default=0)
            seconds = moments.uniform(0, KILL_WITHIN_SECONDS)
            _start_and_kill(command, killed, logged, seconds)
            bar.update()
    run_fql(*command)
    print('3/3 the cost of saving', flush=True)
    report = {
        'kills': args.kills,
        'resumed_at': resumed_at,
        'same_state': _digest(alone) == _digest(killed),
        'same_train_csv': alone.train_csv.read_bytes() == killed.train_csv.read_bytes(),
        'damaged_checkpoints': len(list(killed.damaged.glob('*'))),
        'save': measure_save(folder / 'save'),
    }
    print(json.dumps(report, indent=2))
    return 0 if report['same_state'] and report['same_train_csv'] else 1


def _start_and_kill(command: list[str], folder: RunFolder, start: int, seconds: float) -> None:
    """Starts the trainer, and kills it so long after it has logged an update past `start`."""
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([*FQL, *command], cwd=ROOT, stdout=nothing, stderr=nothing)
    while max(recorded_steps(folder.train_csv), default=0) <= start and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is not None:
        raise FQLError('the run ended before it could be killed; give more --updates')
    process.kill()
    process.wait()


def _digest(folder: RunFolder) -> str:
    reader = CheckpointReader(folder.checkpoints)
    abstract = abstract_state(read_spec(folder), one_device_mesh())
    return tree_digest(reader.restore(abstract, reader.find(None)))


def measure_save(folder: Path) -> dict[str, float]:
    """What a save costs with the paper's networks on 64x64 images with a stack of 3.

    Returns:
        `state_megabytes`; medians of `blocking_ms`, for which training stands still, and of
        `total_s` until the checkpoint is written and sealed; `update_ms`; and
        `blocking_share_every_1000`, the share of time that training stands still when it saves
        every 1,000 updates.
    """
    spec = RunSpec(TrainConfig(task=''), (64, 64, 9), 'uint8', 5)
    mesh = make_mesh()
    state, train_step = initial_state(spec, mesh), make_train_step(spec, mesh)
    size = spec.config.batch_size
    arrays = {
        'frames': jnp.zeros((size, 4, 64, 64, 3), jnp.uint8),
        'actions': jnp.zeros((size, spec.action_dim)),
        'rewards': jnp.zeros(size),
        'masks': jnp.zeros(size),
    }
    blocking, total, updates = [], [], []
    with CheckpointWriter(folder, keep_latest=1) as writer:
        for _ in range(SAVES):
            state, _ = train_step(state, [arrays])
            jax.block_until_ready(state)
            began = time.perf_counter()
            writer.save(state, {})
            blocking.append(time.perf_counter() - began)
            writer.wait()
            total.append(time.perf_counter() - began)
            began = time.perf_counter()
            state, _ = train_step(state, [arrays])
            jax.block_until_ready(state)
            updates.append(time.perf_counter() - began)
    update, block = statistics.median(updates), statistics.median(blocking)
    return {
        'state_megabytes': round(sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6, 1),
        'blocking_ms': round(block * 1e3, 1),
        'total_s': round(statistics.median(total), 2),
        'update_ms': round(update * 1e3, 1),
        'blocking_share_every_1000': block / (block + 1000 * update),
    }
