"""`fql benchmark latents`: caching a frozen encoder's latents against the encoder alone."""

import dataclasses
import statistics
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.errors import DataError
from data_pipeline.store.frame_store import Split
from data_pipeline.store.latents import LatentWriter
from fql.agent import agent_networks
from fql.devices import AXIS, compiler_options, local_mesh
from fql.envs.tasks import default_config, find_task
from fql.networks import Params
from fql.reports.tables import check_new, format_table, write_json
from fql.training.data import load_training_data, run_spec
from fql.training.latent_cache import AHEAD, latent_width, make_encode, write_latents
from fql.training.run_folder import RunSpec
from scripts.arguments import BenchmarkLatents
from scripts.benchmark.measuring import check_positive, median_ratio, take_turns


def run(args: BenchmarkLatents) -> None:
    """Measures, prints a table and writes the numbers as JSON if asked to."""
    check_new(args.json)
    check_positive(rows=args.rows, rounds=args.rounds)
    config = default_config(find_task(args.task))
    config = dataclasses.replace(config, data_dir=str(resolve_data_dir(args.data_dir)))
    data = load_training_data(config)['train']
    split = first_trajectories(data.split, args.rows)
    report = compare_caching(split, run_spec(data, config), args.rounds)
    print(format_report(report))
    write_json(args.json, report)


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
    networks = agent_networks(spec)
    assert networks.encoder is not None
    image = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
    encoder = jax.jit(networks.encoder.init)(jax.random.key(config.seed), image)['params']
    rows = len(split.observations)
    encode, width = make_encode(spec, mesh), latent_width(spec)

    def cache() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            LatentWriter(Path(folder), (rows, width), config.latent_cache) as writer,
        ):
            write_latents(writer, split, config, encode, encoder, mesh)

    alone = make_encoder_alone(spec, encoder, mesh, batches=-(-rows // config.batch_size))
    seconds = take_turns({'encoder alone': alone, 'caching': cache}, rounds)
    return {
        'rows': rows,
        'rows_per_second': {
            name: rows / statistics.median(values) for name, values in seconds.items()
        },
        'throughput_against_encoder_alone': median_ratio(seconds, 'encoder alone', 'caching'),
        'seconds': seconds,
    }


def make_encoder_alone(
    spec: RunSpec, encoder: Params, mesh: Mesh, batches: int
) -> Callable[[], None]:
    """A function that encodes one random batch, on the devices already, `batches` times."""
    spread = NamedSharding(mesh, PartitionSpec(AXIS))
    forward = jax.jit(
        agent_networks(spec).encode, out_shardings=spread, compiler_options=compiler_options()
    )
    shape = (spec.config.batch_size, *spec.observation_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    arrays = (
        jax.device_put(encoder, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(images, spread),
    )

    def encode_alone() -> None:
        pending: deque[jax.Array] = deque()
        for _ in range(batches):
            pending.append(forward(*arrays))
            if len(pending) > AHEAD:
                jax.block_until_ready(pending.popleft())
        jax.block_until_ready(list(pending))

    return encode_alone


def format_report(report: dict[str, Any]) -> str:
    """The figures, one a line."""
    rows = [
        *((f'{name}, rows/s', f'{rate:,.0f}') for name, rate in report['rows_per_second'].items()),
        ('throughput of caching', f'{report["throughput_against_encoder_alone"]:.1%}'),
    ]
    return format_table(['', f'of {report["rows"]:,} rows'], rows)
