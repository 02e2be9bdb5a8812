"""`fql benchmark online`: the online phase against the offline one, environments, disk, memory."""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.environment import render_in_one_thread
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.store.frame_store import Split
from data_pipeline.store.verification import Verification
from data_pipeline.store.writer import write_array
from fql.agents.configs import EncoderConfig, FQLConfig
from fql.compiled import initial_state
from fql.devices import make_mesh
from fql.envs.make import EnvSpec
from fql.envs.tasks import OWN_TASK
from fql.envs.workers import EnvWorkers
from fql.output import format_table
from fql.runs.checkpoints import CheckpointWriter
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import OnlineConfig, TrainConfig
from fql.training.actors import Actors, episode_seed
from fql.training.host_memory import GIVE_BACK_INTERVAL
from fql.training.online import make_acting, train_online
from fql.training.training_data import LabelledSplit, spec_of, training_batches
from scripts.benchmark.args import BenchmarkOnline
from scripts.benchmark.fast_env import ACTION_DIM, EPISODE_STEPS, SIZE
from scripts.benchmark.json_report import write_json_report
from scripts.benchmark.measuring import make_trainer
from scripts.benchmark.memory import watched_memory
from scripts.benchmark.timing import WARM_UP, median_ratio, take_turns

ROWS = 4_096
"""Number of rows of the data made for the measurement."""


def run(args: BenchmarkOnline) -> None:
    """Measure, print a table, and write the numbers as JSON if asked to."""
    report: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if 'updates' in args.parts:
            seconds = compare_phases(
                TrainConfig(task=OWN_TASK), path / 'rate', args.updates, args.rounds
            )
            report['update_rate_against_offline'] = median_ratio(seconds, 'offline', 'online')
            report['seconds'] = seconds
            rows += [
                (f'{name}, ms per update', f'{1e3 * statistics.median(turns) / args.updates:.1f}')
                for name, turns in seconds.items()
            ]
            ratio = report['update_rate_against_offline']
            rows.append(('rate of updates online against offline', f'{ratio:.1%}'))
        if 'environments' in args.parts:
            report['env_steps'] = rates = compare_environments(args, path / 'envs')
            rows += [(f'{name}, steps a second', f'{rate:.1f}') for name, rate in rates.items()]
            share = rates['actors'] / (args.workers * rates['bare'])
            report['env_steps_against_bare'] = share
            rows.append((f'actors against {args.workers} times bare', f'{share:.1%}'))
        if 'memory' in args.parts:
            report |= measure_growth(path / 'memory', args.memory_steps)
            rows += [
                ('anonymous memory, growth', f'{report["memory_growth_mb"]:.0f} MB'),
                ('disk, 1,000,000 steps of 64x64x3', f'{report["disk_gb_per_million"]:.2f} GB'),
            ]
    print(format_table(['', 'measured'], rows))
    write_json_report(args.json, report)


def made_data(folder: Path) -> LabelledSplit:
    """Random images in trajectories, with labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    path = folder / 'observations.npy'
    write_array(path, rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8))
    split = Split(
        name='train',
        path=folder,
        observations=np.load(path, mmap_mode='r'),
        actions=rng.uniform(-1, 1, (ROWS, ACTION_DIM)).astype(np.float32),
        terminals=np.arange(ROWS) % EPISODE_STEPS == EPISODE_STEPS - 1,
        info={},
    )
    split.terminals[-1] = True
    return LabelledSplit(split, -np.ones(ROWS, np.float32), np.ones(ROWS, np.float32))


def compare_phases(
    config: TrainConfig, folder: Path, updates: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of `updates` updates in the offline and in the online phase, which take turns.

    The online phase has an environment that takes no time. It pauses, as for an evaluation, while
    the offline phase has its turn.
    """
    data = made_data(folder / 'data')
    config = dataclasses.replace(
        config,
        steps=0,
        log_interval=0,
        save_interval=0,
        eval_interval=updates,
        online=OnlineConfig(online_steps=updates * (rounds + WARM_UP)),
    )
    spec = spec_of(data, config)
    seconds: dict[str, list[float]] = {'offline': [], 'online': []}
    with (
        CheckpointWriter(folder / 'checkpoints', keep_latest=1) as writer,
        Verification(folder, 'never') as verification,
        fast_workers(config) as workers,
    ):
        trainer = make_trainer(spec, folder, writer, verification)
        offline = dataclasses.replace(
            trainer, schedule=dataclasses.replace(config, steps=updates, eval_interval=0)
        )
        batches = training_batches(data, config, 0)
        start = initial_state(make_learner(spec), config.seed, trainer.mesh)
        began = 0.0

        def take_turn(state: object) -> None:
            nonlocal began
            del state
            ended = time.perf_counter()
            copy = jax.tree.map(jnp.copy, start)
            before = time.perf_counter()
            offline.train(copy, batches, is_evaluation_missing=False)
            seconds['offline'].append(time.perf_counter() - before)
            seconds['online'].append(ended - began)
            began = time.perf_counter()

        online = dataclasses.replace(trainer, evaluate=take_turn)
        state = jax.tree.map(jnp.copy, start)
        train_online(online, state, spec, data, workers, is_evaluation_missing=False)
    return {name: turns[WARM_UP:] for name, turns in seconds.items()}


def fast_workers(config: TrainConfig) -> EnvWorkers:
    """Environments that take no time."""
    spec = EnvSpec('scripts.benchmark.fast_env:FastImages-v0', frame_stack=config.frame_stack)
    return EnvWorkers(spec, config.online.online_workers)


def compare_environments(args: BenchmarkOnline, folder: Path) -> dict[str, float]:
    """Steps a second of one bare environment, and of all actors with their policy and replay.

    Each renders in one thread, the bare one too: by itself it would take several cores. What a step
    takes depends on what the robot does, so the bare environment repeats the actors' episodes, one
    after the other.
    """
    render_in_one_thread()
    config = TrainConfig(task=OWN_TASK, frame_stack=1)
    env_spec = EnvSpec(args.env)
    steps = args.env_steps
    with EnvWorkers(env_spec, args.workers) as bare, EnvWorkers(env_spec, args.workers) as workers:
        shape = workers.observation_shape
        spec = RunSpec(config, shape, str(workers.observation_dtype), workers.action_dim)
        params = initial_state(make_learner(spec), 0, make_mesh()).params
        layout = RowLayout(shape, spec.observation_dtype, spec.action_dim)
        with Replay(folder, args.env, layout, args.workers) as replay:
            actors = Actors(
                workers, replay, make_acting(spec), jax.random.key(0), 0, lambda metrics: None
            )
            actors.start()
            bare.reset({index: episode_seed(0, index, 0) for index in range(args.workers)})

            def step_actors() -> None:
                for _ in range(steps):
                    actors.begin(actors.choose(params))
                    actors.finish()

            def step_bare() -> None:
                for index, stream in enumerate(replay.streams):
                    for action in stream.read('actions', stream.rows - 1 - steps, stream.rows - 1):
                        bare.step({index: action})

            seconds = take_turns({'actors': step_actors, 'bare': step_bare}, args.rounds)
    made = steps * args.workers
    return {name: made / statistics.median(turns) for name, turns in seconds.items()}


def measure_growth(folder: Path, steps: int) -> dict[str, float]:
    """Growth of anonymous memory, and disk, of `steps` online steps with small networks.

    Growth is the maximum at any moment after the warm-up, less the memory at the warm-up's end. In
    the warm-up the memory of compilation is given back, which would otherwise hide growth.
    """
    data = made_data(folder / 'data')
    agent = FQLConfig(hidden_dims=(32,), encoder=EncoderConfig(size='impala_debug'))
    config = TrainConfig(
        task=OWN_TASK,
        steps=0,
        batch_size=16,
        log_interval=0,
        eval_interval=0,
        save_interval=0,
        agent=agent,
        online=OnlineConfig(online_steps=steps),
    )
    spec = spec_of(data, config)
    with (
        CheckpointWriter(folder / 'checkpoints', keep_latest=1) as writer,
        Verification(folder, 'never') as verification,
        fast_workers(config) as workers,
        watched_memory() as growth,
    ):
        trainer = make_trainer(spec, folder, writer, verification)
        state = initial_state(make_learner(spec), 0, trainer.mesh)
        warm = max(steps // 20, 2 * GIVE_BACK_INTERVAL)
        settled: list[int] = []

        def note(state: object) -> None:
            del state
            settled.append(len(growth) - 1)

        trainer = dataclasses.replace(trainer, evaluate=note)
        spec = dataclasses.replace(spec, config=dataclasses.replace(config, eval_interval=warm))
        train_online(trainer, state, spec, data, workers, is_evaluation_missing=False)
        counted = growth[settled[0] :]
    files = [path for path in (folder / 'replay').rglob('*') if path.is_file()]
    nbytes = sum(path.stat().st_blocks * 512 for path in files)
    return {
        'memory_growth_mb': max(counted) - counted[0],
        'disk_gb_per_million': nbytes / steps * 1e6 / 1e9,
    }
