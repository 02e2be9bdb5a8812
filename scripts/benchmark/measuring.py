"""What benchmarks share: a task's settings, taking turns, and the program in its own process."""

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.data_dir import resolve_data_dir
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.training.config import TrainConfig
from fql.training.presets import default_config

FQL = (sys.executable, '-m', 'scripts.main')
"""The program, to be run in a process of its own from `ROOT`."""

ROOT = Path(__file__).parents[2]

WARM_UP = 2
"""Turns that are not counted."""


def task_config(task: str, data_dir: str, **changes: Any) -> TrainConfig:
    """The settings of a task, but for the changes."""
    config = default_config(find_task(task))
    return dataclasses.replace(config, data_dir=str(resolve_data_dir(data_dir)), **changes)


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each way, A B A B: what slows the machine for a while slows all of them.

    Args:
        ways: each does its work once and returns when that is done.
        rounds: turns of each.
        before: what some ways do before each of their turns, not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + WARM_UP):
        started = time.perf_counter()
        for name, way in ways.items():
            if before and name in before:
                before[name]()
            began = time.perf_counter()
            way()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
        left = (time.perf_counter() - started) * (rounds + WARM_UP - turn - 1)
        line = f'turn {turn + 1} of {rounds + WARM_UP}, {left:.0f} s left'
        print(f'\r{line:40}', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def median_ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """How many times faster `fast` is than `slow`: the median over the turns of both."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


def run_fql(*arguments: str, environment: Mapping[str, str] = os.environ) -> None:
    """Runs the program in a process of its own, silently.

    Raises:
        FQLError: it failed; with the last line that it printed.
    """
    command = [*FQL, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise FQLError(f'fql {arguments[0]} failed: {lines[-1]}')
