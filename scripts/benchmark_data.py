"""`fql benchmark data`: the loader against the reference implementation's way of sampling."""

import dataclasses
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.frame_store import Split
from data_pipeline.loader import LoaderConfig, make_batches
from fql.agent import initial_state
from fql.config import TrainConfig
from fql.devices import make_mesh, put_batch
from fql.tasks import default_config, find_task
from scripts.arguments import BenchmarkData
from scripts.training_data import (
    LabelledSplit,
    load_training_data,
    run_spec,
    training_batches,
)
from scripts.training_loop import LOADED_FIELDS, make_train_step

MILLION = 1_000_000
TRAJECTORY = 1_001
PAD = 3


def run(args: BenchmarkData) -> None:
    """Measures and prints a report."""
    config = dataclasses.replace(default_config(find_task(args.task)), data_dir=args.data_dir)
    data = load_training_data(config)['train']
    report = {
        'batch_size': config.batch_size,
        'frame_stack': config.frame_stack,
        **compare_samplers(data, config, args.rounds),
        'bytes_to_device_ratio': (config.frame_stack + 1) / (2 * config.frame_stack),
        'million_frames': measure_million_frames(config, args.batches),
        'training_waits_for_data_share': measure_waiting(data, config, args.updates),
    }
    print(json.dumps(report, indent=2))


def compare_samplers(data: LabelledSplit, config: TrainConfig, rounds: int) -> dict[str, object]:
    """Host milliseconds per batch: medians of `rounds` turns of each way, and their ratios."""
    shifted, plain = (
        training_batches(data, dataclasses.replace(config, shift_probability=probability), 0)
        for probability in (0.5, 0.0)
    )
    reference = reference_sampler(data, config)
    ways: dict[str, Callable[[], object]] = {
        'reference': reference,
        'loader': lambda: next(shifted),
        'loader_without_shift': lambda: next(plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-2, rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in range(8):
                way()
            if turn >= 0:
                seconds[name].append((time.perf_counter() - began) / 8)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        'ms_per_batch': {name: round(value * 1e3, 2) for name, value in medians.items()},
        'times_faster': {
            name: round(medians['reference'] / value, 1) for name, value in medians.items()
        },
    }


def reference_sampler(data: LabelledSplit, config: TrainConfig) -> Callable[[], object]:
    """The reference implementation's way: six fancy indexings of frames, and a jitted crop.

    Observations and next observations are gathered and stacked by NumPy; with probability 0.5 each
    is padded and cropped under `jax.jit`.
    """
    rng = np.random.default_rng(0)
    frames, valid, first = data.split.observations, data.split.valid_rows, data.split.first_rows
    stack = config.frame_stack

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode='edge')
        return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape)

    crop_batch = jax.jit(jax.vmap(crop))

    def sample() -> object:
        rows = valid[rng.integers(0, len(valid), config.batch_size)]
        past = [np.maximum(rows - i, first[rows]) for i in reversed(range(stack))]
        observations = np.concatenate([frames[r] for r in past], axis=-1)
        following = np.concatenate([*(frames[r] for r in past[1:]), frames[rows + 1]], axis=-1)
        if rng.random() < 0.5:
            corners = rng.integers(0, 2 * PAD + 1, (config.batch_size, 2))
            observations = np.asarray(crop_batch(observations, corners))
            following = np.asarray(crop_batch(following, corners))
        return (
            observations,
            following,
            data.split.actions[rows],
            data.rewards[rows],
            data.masks[rows],
        )

    return sample


def measure_million_frames(config: TrainConfig, batches: int) -> dict[str, float]:
    """Seconds to the first batch and growth of anonymous memory, with a sparse 12.3 GB store."""
    terminals = np.arange(MILLION) % TRAJECTORY == TRAJECTORY - 1
    terminals[-1] = True
    with tempfile.TemporaryDirectory() as folder:
        observations = np.lib.format.open_memmap(
            Path(folder) / 'observations.npy', 'w+', np.uint8, (MILLION, 64, 64, 3)
        )
        split = Split(
            name='train',
            path=Path(folder),
            observations=observations,
            actions=np.zeros((MILLION, 5), np.float32),
            terminals=terminals,
            info={},
        )
        zeros = np.zeros(MILLION, np.float32)
        loader_config = LoaderConfig(batch_size=config.batch_size, frame_stack=config.frame_stack)
        before = anonymous_megabytes()
        seconds = {}
        for step in (0, 900_000):
            began = time.perf_counter()
            stream = make_batches(split, zeros, zeros, loader_config, step)
            next(stream)
            seconds[step] = time.perf_counter() - began
        opened = anonymous_megabytes()
        for _ in range(batches):
            next(stream)
        return {
            'first_batch_s': round(seconds[0], 2),
            'first_batch_at_step_900000_s': round(seconds[900_000], 2),
            'anonymous_growth_of_opening_mb': round(opened - before, 1),
            'batches': batches,
            'anonymous_growth_over_batches_mb': round(anonymous_megabytes() - opened, 1),
        }


def anonymous_megabytes() -> float:
    """This process's anonymous memory (RssAnon); NaN where the system does not tell."""
    status = Path('/proc/self/status')
    found = re.search(r'RssAnon:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return int(found.group(1)) / 1e3 if found else float('nan')


def measure_waiting(data: LabelledSplit, config: TrainConfig, updates: int) -> float:
    """The share of the time of training that passes in waiting for the next batch."""
    mesh = make_mesh()
    spec = run_spec(data, config)
    state, train_step = initial_state(spec, mesh), make_train_step(spec)
    batches = training_batches(data, config, 0)
    waiting = began = 0.0
    for update in range(-2, updates):
        if update == 0:
            waiting, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        arrays = next(batches)
        waiting += time.perf_counter() - asked
        state, metrics = train_step(
            state, put_batch({name: arrays[name] for name in LOADED_FIELDS}, mesh)
        )
        jax.block_until_ready(metrics)
    return round(waiting / (time.perf_counter() - began), 4)
