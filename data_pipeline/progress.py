"""How long work reports how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""(done, total): called now and then; the unit is the work's own."""


def running_sum(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that adds what was done to a running sum, and reports it."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    return advance
