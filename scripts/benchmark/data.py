"""`fql benchmark data`: the loader against the reference implementation's way of sampling."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import LoaderConfig, make_batches
from data_pipeline.sample_layout import SHIFT_PAD
from data_pipeline.store.frame_store import Split
from fql.batch import LOADED_FIELDS
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.devices import make_mesh, put_batch
from fql.output import format_table, print_notice
from fql.runs.run_learner import batch_preparer, make_learner
from fql.settings.train_config import TrainConfig
from fql.training.host_memory import GIVE_BACK_INTERVAL, give_back_freed_memory
from fql.training.training_data import LabelledSplit, load_training_data, spec_of, training_batches
from scripts.benchmark.args import BenchmarkData
from scripts.benchmark.json_report import write_json_report
from scripts.benchmark.measuring import task_config
from scripts.benchmark.memory import anonymous_megabytes
from scripts.benchmark.sources import measure_sources
from scripts.benchmark.timing import median_ratio, take_turns

MILLION = 1_000_000
TRAJECTORY = 1_001
LATE_STEP = 900_000
TIMED = 8
MAX_PREFETCHED = 20
"""More batches than the loader can have ready from the other ways' turns (one for each core, up to
16, plus one); not timed."""

Report = dict[str, Any]


def run(args: BenchmarkData) -> None:
    """Measure, print a table, and write the numbers as JSON if asked to."""
    config = task_config(args.task, args.data_dir)
    data = load_training_data(config)['train']
    with tempfile.TemporaryDirectory(prefix='benchmark-', dir=config.data_dir) as folder:
        # Memory and disk first, while nothing else is held; but TensorFlow itself is not counted.
        print_notice('1/4 prepare and export')
        sources = measure_sources(data.split, Path(folder))
        print_notice('2/4 a million frames')
        next(training_batches(data, dataclasses.replace(config, batch_size=1), 0))
        million = measure_million_frames(config, args.batches, Path(folder))
    print_notice('3/4 samplers')
    samplers = compare_samplers(data, config, args.rounds)
    print_notice('4/4 waiting')
    report: Report = {
        'batch_size': config.batch_size,
        'frame_stack': config.frame_stack,
        **samplers,
        'bytes_to_device_ratio': (config.frame_stack + 1) / (2 * config.frame_stack),
        'million_frames': million,
        'sources': sources,
        'training_waits_for_data_share': measure_waiting(data, config, args.updates),
    }
    print(format_report(report))
    write_json_report(args.json, report)


def format_report(report: Report) -> str:
    """The results, beside the reference implementation's way where that was measured too."""
    times, faster = report['ms_per_batch'], report['times_faster']
    million, bytes_ratio = report['million_frames'], report['bytes_to_device_ratio']
    growth = million['anonymous_growth_mb']
    since = growth[max(growth)] - growth[min(1_000, max(growth))]
    lines = [
        ('host time per batch', f'{times["loader"]:.1f} ms', f'{times["reference"]:.1f} ms'),
        ('  times faster', f'{faster["loader"]:.1f}', '1'),
        ('  without shift', f'{times["loader_without_shift"]:.1f} ms', ''),
        ('  times faster', f'{faster["loader_without_shift"]:.1f}', '1'),
        ('bytes to the device, in those of two whole stacks', f'{bytes_ratio:.2f}', '1'),
        ('a million frames (12.3 GB): first batch', f'{million["first_batch_s"]:.2f} s', ''),
        ('  at step 900,000', f'{million["first_batch_at_step_900000_s"]:.2f} s', ''),
    ]
    for batches, megabytes in growth.items():
        name = f'  anonymous memory after {batches:,} batches'
        lines.append((name, f'{megabytes:+.0f} MB', ''))
    lines.append(('  of it since 1,000', f'{since:+.0f} MB', ''))
    for name, row in (
        ('prepare', 'prepare from .npz'),
        ('prepare_hdf5', 'prepare from HDF5'),
        ('export', 'export to TFDS'),
    ):
        result = report['sources'][name]
        peak = f'{result["peak_anonymous_growth_mb"]:+.0f} MB'
        lines.append((row, f'{result["frames_per_second"]:,} frames/s', ''))
        lines.append(('  peak of anonymous memory', peak, ''))
    waits = f'{report["training_waits_for_data_share"]:.2%}'
    lines.append(('share of training time that waits for data', waits, ''))
    return format_table(('', 'measured', 'reference'), lines)


def compare_samplers(data: LabelledSplit, config: TrainConfig, rounds: int) -> Report:
    """Host milliseconds per batch and how many times less: medians of `rounds` turns of each."""
    shifted, plain = (
        training_batches(data, dataclasses.replace(config, shift_probability=probability), 0)
        for probability in (0.5, 0.0)
    )
    loaders = {'loader': shifted.__next__, 'loader_without_shift': plain.__next__}
    # Batches are made in bursts, several at once: as many are timed as were drawn before.
    ways = {
        'reference': partial(repeat, reference_sampler(data, config), TIMED),
        **{name: partial(repeat, draw, TIMED + MAX_PREFETCHED) for name, draw in loaders.items()},
    }
    before = {name: partial(repeat, draw, MAX_PREFETCHED) for name, draw in loaders.items()}
    seconds = {
        name: [turn / ways[name].args[1] for turn in turns]
        for name, turns in take_turns(ways, rounds, before).items()
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        'ms_per_batch': {name: round(value * 1e3, 2) for name, value in medians.items()},
        'times_faster': {name: round(median_ratio(seconds, 'reference', name), 1) for name in ways},
    }


def repeat(draw: Callable[[], object], count: int) -> None:
    """Draw `count` batches."""
    for _ in range(count):
        draw()


def reference_sampler(data: LabelledSplit, config: TrainConfig) -> Callable[[], object]:
    """The reference implementation's way: eight fancy indexings of frames, and a jitted crop.

    Observations and next observations are separate arrays in memory. All arrays are indexed;
    then the frames of the stacks, which take the place of the observations, and are concatenated.
    With probability 0.5 both stacks are padded and cropped under `jax.jit` and copied back.
    """
    rng = np.random.default_rng(0)
    valid, first = data.split.valid_rows, data.split.first_rows
    arrays = {
        'observations': np.array(data.split.observations),
        'next_observations': np.roll(data.split.observations, -1, axis=0),
        'actions': np.array(data.split.actions),
        'terminals': np.array(data.split.terminals),
        'rewards': data.rewards,
        'masks': data.masks,
    }

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        pads = ((SHIFT_PAD, SHIFT_PAD), (SHIFT_PAD, SHIFT_PAD), (0, 0))
        padded = jnp.pad(image, pads, mode='edge')
        return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)

    crop_batch = jax.jit(jax.vmap(crop))

    def sample() -> object:
        rows = valid[rng.integers(0, len(valid), config.batch_size)]
        batch = {name: array[rows] for name, array in arrays.items()}
        past = [np.maximum(rows - i, first[rows]) for i in reversed(range(config.frame_stack))]
        frames, next_frames = arrays['observations'], arrays['next_observations']
        batch['observations'] = np.concatenate([frames[r] for r in past], axis=-1)
        batch['next_observations'] = np.concatenate(
            [*(frames[r] for r in past[1:]), next_frames[rows]], axis=-1
        )
        if rng.random() < 0.5:
            corners = rng.integers(0, 2 * SHIFT_PAD + 1, (config.batch_size, 2))
            for name in ('observations', 'next_observations'):
                batch[name] = np.array(crop_batch(batch[name], corners))
        return batch

    return sample


def measure_million_frames(config: TrainConfig, batches: int, folder: Path) -> Report:
    """Seconds to the first batch and growth of anonymous memory, with a sparse 12.3 GB store.

    Returns:
        `first_batch_s` and `first_batch_at_step_900000_s`, from an open store;
        `anonymous_growth_mb`, the most among the last thousand batches, by number of batches drawn.
    """
    terminals = np.arange(MILLION) % TRAJECTORY == TRAJECTORY - 1
    terminals[-1] = True
    make_file = np.lib.format.open_memmap
    observations = make_file(folder / 'observations.npy', 'w+', np.uint8, (MILLION, 64, 64, 3))
    actions = make_file(folder / 'actions.npy', 'w+', np.float32, (MILLION, 5))
    zeros = np.zeros(MILLION, np.float32)
    split = Split('train', folder, observations, actions, terminals, {})
    loader_config = LoaderConfig(batch_size=config.batch_size, frame_stack=config.frame_stack)
    seconds, growth = {}, {}
    before = anonymous_megabytes()
    for step in (0, LATE_STEP):
        began = time.perf_counter()
        stream = make_batches(split, zeros, zeros, loader_config, step)
        next(stream)
        seconds[step] = time.perf_counter() - began
        if step:
            continue
        # The memory of one open stream, as in training.
        growth[1] = round(anonymous_megabytes() - before, 1)
        most = 0.0
        for drawn in range(2, batches + 1):
            next(stream)
            most = max(most, anonymous_megabytes() - before)
            if drawn in (1_000, batches):
                growth[drawn] = round(most, 1)
            if drawn % GIVE_BACK_INTERVAL == 0:  # As in training.
                give_back_freed_memory()
                most = 0.0
        del stream
    return {
        'first_batch_s': round(seconds[0], 2),
        'first_batch_at_step_900000_s': round(seconds[LATE_STEP], 2),
        'anonymous_growth_mb': growth,
    }


def measure_waiting(data: LabelledSplit, config: TrainConfig, updates: int) -> float:
    """The share of training time that is spent waiting for the next batch."""
    mesh = make_mesh()
    spec = spec_of(data, config)
    learner = make_learner(spec)
    state = initial_state(learner, config.seed, mesh)
    train_step = make_train_step(learner, batch_preparer(spec), abstract_state(learner, mesh))
    batches = training_batches(data, config, 0)
    waiting = began = 0.0
    for update in range(-2, updates):
        if update == 0:
            waiting, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        arrays = next(batches)
        waiting += time.perf_counter() - asked
        batch = put_batch({name: arrays[name] for name in LOADED_FIELDS}, mesh)
        state, metrics = train_step(state, [batch])
        jax.block_until_ready(metrics)
    return round(waiting / (time.perf_counter() - began), 4)
