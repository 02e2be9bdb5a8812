"""Fair comparison of the times that several ways to do something take."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

WARM_UP = 2
"""Warm-up turns, not counted."""


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
    # Not tqdm's bar: `fql benchmark update` runs where little more than JAX is installed.
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
