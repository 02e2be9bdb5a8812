"""`fql benchmark scaling`: the cost of an update against sizes and the number of devices."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from fql.config import AgentConfig, TrainConfig
from fql.reports.plots import plot_series
from fql.reports.tables import format_table, write_json
from fql.reports.timing import take_turns
from scripts.benchmark.args import BenchmarkScaling
from scripts.benchmark.update import Way, our_way, with_agent

VIRTUAL_DEVICES = 8
COLUMNS = {'ms_per_update': 'ms per update', 'gflop_per_device': 'GFLOP per device'}
"""What is drawn."""


def run(args: BenchmarkScaling) -> None:
    """Measures every quantity, prints a table, and writes `scaling.json` and `scaling.png`."""
    # Must come before JAX is used; other platforms take the devices that there are.
    jax.config.update('jax_num_cpu_devices', VIRTUAL_DEVICES)
    points = {}
    for name, (values, way) in quantities(args.encoder).items():
        print(f'{name}: {", ".join(map(str, values))}', flush=True)
        points[name] = measure({value: way(value) for value in values}, args.rounds)
    rows = [
        [
            f'{name} {point["value"]}',
            f'{point["ms_per_update"]:.0f}',
            f'{point["gflop_per_device"]:.2f}',
            f'{point["gflop_per_device"] / series[0]["gflop_per_device"]:.3f}',
            f'{point["gigabytes_per_device"]:.2f}',
        ]
        for name, series in points.items()
        for point in series
    ]
    header = ['', 'ms/update', 'GFLOP per device', 'against the first', 'GB per device']
    print(format_table(header, rows))
    write_json(args.out / 'scaling.json', points)
    plot_series(args.out / 'scaling.png', points, COLUMNS)
    print(f'written: {args.out / "scaling.png"}')


def quantities(encoder: Any) -> dict[str, tuple[tuple[Any, ...], Callable[[Any], Way]]]:
    """By name, the values of what is varied, around a batch of 256 stacks of 3 frames 64x64, and
    the update at a value; all but the number of devices on one device.
    """
    base = TrainConfig(task='', agent=AgentConfig(encoder=encoder))
    counts = tuple(2**i for i in range(10) if 2**i <= jax.device_count())
    encoders = ('impala_debug', 'impala_small', 'impala')
    return {
        'batch size': ((64, 128, 256, 512), lambda n: our_way(replace(base, batch_size=n), 64, 1)),
        'image size': ((32, 64, 96, 128), lambda size: our_way(base, size, 1)),
        'frame stack': ((1, 2, 3, 4), lambda n: our_way(replace(base, frame_stack=n), 64, 1)),
        'encoder': (encoders, lambda name: our_way(with_agent(base, encoder=name), 64, 1)),
        'devices': (counts, lambda n: our_way(base, 64, n)),
    }


def measure(ways: dict[Any, Way], rounds: int) -> list[dict[str, Any]]:
    """A point for each value."""
    seconds = take_turns({str(value): way.run for value, way in ways.items()}, rounds)
    return [
        {
            'value': value,
            'ms_per_update': 1e3 * statistics.median(seconds[str(value)]),
            'gflop_per_device': way.flops / 1e9,
            'gigabytes_per_device': way.bytes_accessed / 1e9,
        }
        for value, way in ways.items()
    ]
