"""What benchmarks share: taking turns, and the program in a process of its own."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fql.errors import FQLError
from fql.training.progress import progress_bar

FQL = (sys.executable, '-m', 'scripts.main')
"""The program, to be run in a process of its own from `ROOT`."""

ROOT = Path(__file__).parents[2]

WARM_UP = 2
"""Turns that are not counted."""


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, A B A B: what slows the machine for a while slows all of them.

    Args:
        ways: each does its work once and returns when that is done.
        rounds: turns of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with progress_bar('measure', 'turn', rounds + WARM_UP) as bar:
        for turn in range(rounds + WARM_UP):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - began)
            bar.update()
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
