"""`fql benchmark scaling`: the cost of an update against sizes and the number of devices."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from fql.config import AgentConfig, TrainConfig
from fql.reports.tables import format_table, write_json
from scripts.benchmark.measuring import take_turns
from scripts.benchmark.scaling_args import BenchmarkScaling
from scripts.benchmark.update import Way, our_way, with_agent

VIRTUAL_DEVICES = 8
Point = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One quantity that is varied while the others keep their base value.

    Attributes:
        values: what it is set to.
        way: makes the update at a value.
    """

    values: tuple[Any, ...]
    way: Callable[[Any], Way]


def run(args: BenchmarkScaling) -> None:
    """Measures every axis, prints a table, and writes `scaling.json` and `scaling.png`."""
    table, plot = args.out / 'scaling.json', args.out / 'scaling.png'
    # Must come before JAX is used; other platforms take the devices that there are.
    jax.config.update('jax_num_cpu_devices', VIRTUAL_DEVICES)
    points = {
        name: measure_axis(name, axis, args.rounds) for name, axis in axes(args.encoder).items()
    }
    print(format_report(points))
    write_json(table, points)
    plot_points(points, plot)
    print(f'written: {plot}')


def axes(encoder: Any) -> dict[str, Axis]:
    """What is varied, around a batch of 256 stacks of 3 frames 64x64."""
    base = TrainConfig(task='', agent=AgentConfig(encoder=encoder))
    counts = tuple(2**i for i in range(10) if 2**i <= jax.device_count())
    return {
        'batch size': Axis((64, 128, 256, 512), lambda n: one(replace(base, batch_size=n), 64)),
        'image size': Axis((32, 64, 96, 128), lambda size: one(base, size)),
        'frame stack': Axis((1, 2, 3, 4), lambda n: one(replace(base, frame_stack=n), 64)),
        'encoder': Axis(
            ('impala_debug', 'impala_small', 'impala'),
            lambda name: one(with_agent(base, encoder=name), 64),
        ),
        'devices': Axis(counts, lambda n: our_way(base, 64, n)),
    }


def one(config: TrainConfig, image_size: int) -> Way:
    """The update on one device."""
    return our_way(config, image_size, 1)


def measure_axis(name: str, axis: Axis, rounds: int) -> list[Point]:
    """A point for each value; all but the number of devices are measured on one."""
    print(f'{name}: {", ".join(map(str, axis.values))}', flush=True)
    ways = {value: axis.way(value) for value in axis.values}
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


def format_report(points: Mapping[str, list[Point]]) -> str:
    """A line for each point."""
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
    return format_table(
        ['', 'ms/update', 'GFLOP per device', 'against the first', 'GB per device'], rows
    )


def plot_points(points: Mapping[str, list[Point]], path: Path) -> None:
    """Time and work against each quantity."""
    figure = Figure(figsize=(3 * len(points), 5), layout='constrained')
    panels = figure.subplots(2, len(points), sharex='col')
    for i, (name, series) in enumerate(points.items()):
        values = [point['value'] for point in series]
        for row, key, label in (
            (0, 'ms_per_update', 'ms per update'),
            (1, 'gflop_per_device', 'GFLOP per device'),
        ):
            panels[row, i].plot(values, [point[key] for point in series], 'o-')
            panels[row, i].set_ylim(bottom=0)
            panels[row, i].set_xticks(values)
            panels[row, i].grid(alpha=0.3)
            if i == 0:
                panels[row, i].set_ylabel(label)
        panels[1, i].set_xlabel(name)
    figure.savefig(path, dpi=100)
