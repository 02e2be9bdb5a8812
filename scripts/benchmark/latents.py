"""`fql benchmark latents`: caching a frozen encoder's latents against the encoder alone."""

import dataclasses
import statistics
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from data_pipeline.errors import DataError
from data_pipeline.store.frame_store import Split
from data_pipeline.store.latents import LatentWriter
from fql.devices import local_mesh
from fql.output import format_table
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec
from fql.training.latent_cache import (
    AHEAD,
    latent_width,
    make_encode_block,
    put_block,
    read_block,
    write_latents,
)
from fql.training.training_data import load_training_data, spec_of
from scripts.benchmark.args import BenchmarkLatents
from scripts.benchmark.json_report import write_json_report
from scripts.benchmark.measuring import task_config
from scripts.benchmark.timing import median_ratio, take_turns


def run(args: BenchmarkLatents) -> None:
    """Measure, print a table, and write the numbers as JSON if asked to."""
    config = task_config(args.task, args.data_dir)
    data = load_training_data(config)['train']
    split = first_trajectories(data.split, args.rows)
    report = compare_caching(split, spec_of(data, config), args.rounds)
    rows = [
        *((f'{name}, rows/s', f'{rate:,.0f}') for name, rate in report['rows_per_second'].items()),
        ('throughput of caching', f'{report["throughput_against_encoder_alone"]:.1%}'),
    ]
    print(format_table(['', f'of {report["rows"]:,} rows'], rows))
    write_json_report(args.json, report)


def first_trajectories(split: Split, rows: int) -> Split:
    """The split's first trajectories that have no more than `rows` rows together.

    Raises:
        DataError: the first one has more.
    """
    ends = np.flatnonzero(split.terminals) + 1
    if ends[0] > rows:
        raise DataError(f'{split.path}: the first trajectory has {ends[0]} rows, more than {rows}')
    end = ends[ends <= rows][-1]
    return dataclasses.replace(
        split,
        observations=split.observations[:end],
        actions=split.actions[:end],
        terminals=split.terminals[:end],
    )


def compare_caching(split: Split, spec: RunSpec, rounds: int) -> dict[str, Any]:
    """Seconds of each turn, and rows in a second, both ways."""
    config, mesh = spec.config, local_mesh()
    module, image = agent_of(spec).encoder, np.zeros((1, *spec.observation_shape), np.uint8)
    assert module is not None
    encoder = jax.jit(module.init)(jax.random.key(config.seed), image)['params']
    encoder = jax.device_put(encoder, NamedSharding(mesh, PartitionSpec()))
    rows = len(split.observations)
    encode, width = make_encode_block(spec, mesh), latent_width(spec)
    end = min(config.batch_size, len(split.observations))
    frames, stacks = read_block(split, split.first_rows, 0, end, config)
    block = put_block(frames, stacks, mesh)

    def encode_alone() -> None:
        pending: deque[jax.Array] = deque()
        for _ in range(-(-rows // config.batch_size)):
            pending.append(encode(encoder, *block))
            if len(pending) > AHEAD:
                jax.block_until_ready(pending.popleft())
        jax.block_until_ready(list(pending))

    def cache() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            LatentWriter(Path(folder), (rows, width), config.latent_cache) as writer,
        ):
            write_latents(writer, split, config, encode, encoder, mesh)

    seconds = take_turns({'encoder alone': encode_alone, 'caching': cache}, rounds)
    return {
        'rows': rows,
        'rows_per_second': {
            name: rows / statistics.median(values) for name, values in seconds.items()
        },
        'throughput_against_encoder_alone': median_ratio(seconds, 'encoder alone', 'caching'),
        'seconds': seconds,
    }
