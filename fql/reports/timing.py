"""How long ways to do something take, compared fairly."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from fql.training.progress import progress_bar

WARM_UP = 2
"""Turns that are not counted."""


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
    with progress_bar('measure', 'turn', rounds + WARM_UP) as bar:
        for turn in range(rounds + WARM_UP):
            for name, way in ways.items():
                if before and name in before:
                    before[name]()
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
