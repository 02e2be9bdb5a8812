"""`fql benchmark faults`: many kills of one run, and what saving costs."""

import json
import random
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.replay import RECORD
from encoders.leaves import tree_digest
from fql.command import PROGRAM
from fql.compiled import abstract_state, initial_state
from fql.devices import make_mesh, put_batch
from fql.errors import FQLError
from fql.policies.evaluation import recorded_steps
from fql.runs.checkpoints import CheckpointWriter
from fql.runs.progress import progress_bar
from fql.runs.run_checkpoints import open_checkpoint
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import agent_of, make_learner, train_step_of
from fql.runs.run_spec import read_spec
from fql.settings.train_config import TrainConfig
from scripts.benchmark.args import BenchmarkFaults
from scripts.benchmark.measuring import ROOT, run_fql
from scripts.benchmark.timing import take_turns
from scripts.benchmark.update import image_spec, random_arrays

SETTINGS = (
    *('--batch-size', '16', '--encoder', 'impala_debug', '--hidden-dims', '32', '32'),
    *('--eval-interval', '0', '--save-interval', '25', '--log-interval', '10'),
)
KILL_WITHIN_SECONDS = 2.0
SAVES = 5
OFFLINE = 100
"""Offline updates of a run with an online phase."""
IMAGE_SIZE = 64


def run(args: BenchmarkFaults) -> int:
    """Print a report; the exit code is 0 only if the states agree."""
    data_dir = str(resolve_data_dir(args.data_dir))
    command = ['train', '--task', args.task, '--data-dir', data_dir, *SETTINGS]
    if args.online:
        command += ['--steps', str(OFFLINE), '--online-steps', str(args.updates - OFFLINE)]
        command += ['--online-workers', '2', '--max-episode-steps', '50']
    else:
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
            # Rows up to there may remain of an update that has to be repeated.
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
        'same_replay': not args.online or _replay(alone) == _replay(killed),
        'damaged_checkpoints': len(list(killed.damaged.glob('*'))),
        'save': measure_save(folder / 'save'),
    }
    print(json.dumps(report, indent=2))
    return 0 if all(value for name, value in report.items() if name.startswith('same_')) else 1


def _start_and_kill(command: list[str], folder: RunFolder, start: int, seconds: float) -> None:
    """Start the trainer; kill it `seconds` after it has logged an update past `start`."""
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([*PROGRAM, *command], cwd=ROOT, stdout=nothing, stderr=nothing)
    while max(recorded_steps(folder.train_csv), default=0) <= start and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    if process.poll() is not None:
        raise FQLError('the run ended before it could be killed; give more --updates')
    process.kill()
    process.wait()


def _digest(folder: RunFolder) -> str:
    with open_checkpoint(folder, read_spec(folder), None) as (step, reader, abstract):
        return tree_digest(reader.restore(abstract, step))


def _replay(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Rows and checksums of a run's replay, and its episodes."""
    streams = json.loads((folder.replay / RECORD).read_text())['streams']
    return {'streams': streams, 'episodes': {'csv': folder.online_csv.read_text()}}


def measure_save(folder: Path) -> dict[str, float]:
    """What a save costs with the paper's networks on 64x64 images with a stack of 3.

    Returns:
        `state_megabytes`; medians of `blocking_ms`, for which training stands still, and of
        `total_s` until the checkpoint is written; `update_ms`; and
        `blocking_share_every_1000`, the share of time that training stands still when it saves
        every 1,000 updates.
    """
    config, mesh = TrainConfig(task=''), make_mesh()
    spec = image_spec(config, IMAGE_SIZE)
    learner = make_learner(spec)
    arrays = put_batch(random_arrays(agent_of(spec), config, IMAGE_SIZE), mesh)
    states = [initial_state(learner, config.seed, mesh)]
    train_step = train_step_of(spec, learner, abstract_state(learner, mesh))

    def update() -> None:
        states.append(jax.block_until_ready(train_step(states.pop(), [arrays])[0]))

    with CheckpointWriter(folder, keep_latest=1) as writer:
        ways = {
            'update': update,
            'block': lambda: writer.save(states[0], {}),
            'write': writer.wait,
        }
        seconds = take_turns(ways, SAVES, before={'block': update})
    step, block, write = (statistics.median(turns) for turns in seconds.values())
    return {
        'state_megabytes': round(sum(x.nbytes for x in jax.tree.leaves(states[0])) / 1e6, 1),
        'blocking_ms': round(block * 1e3, 1),
        'total_s': round(block + write, 2),
        'update_ms': round(step * 1e3, 1),
        'blocking_share_every_1000': block / (block + 1000 * step),
    }
