"""Progress bars with rate and time left."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 30.0


class ProgressBar(tqdm):
    """A bar that stays hidden until its delay has passed, also when a line is written above it.

    tqdm would show it then. It ends the line of a closed bar only if the bar has moved, and so
    would leave one that was shown before that without a line end.
    """

    last_print_t: float  # Of tqdm, which has no types.
    _is_shown = False

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Show the bar, if its delay has passed."""
        if time.time() >= self.start_t + self.delay:
            self._is_shown = True
            return super().refresh(*args, **kwargs)
        return None

    def close(self) -> None:
        """End the bar, and its line if it was shown."""
        if self._is_shown:
            self.last_print_t = max(self.last_print_t, self.start_t + self.delay)
        super().close()


def progress_bar(desc: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A bar on standard error: live on a terminal, an occasional line in a log file."""
    is_terminal = sys.stderr.isatty()
    return ProgressBar(
        desc=desc,
        unit=unit,
        unit_scale=unit == 'B',
        total=total,
        initial=initial,
        dynamic_ncols=True,
        mininterval=TERMINAL_SECONDS if is_terminal else LOG_SECONDS,
        delay=0.2,
    )


def count_from(bar: tqdm, done: int) -> None:
    """Measure rate and time left from now on, at `done` units: excludes the time to start."""
    bar.initial = bar.n = bar.last_print_n = done
    bar.unpause()


def move_to(bar: tqdm, done: int) -> None:
    """Move the bar, also back: what was lost counts neither for the rate nor for the time left."""
    bar.initial = max(0, bar.initial - max(0, bar.n - done))
    bar.update(done - bar.n)


def progress_callback(bar: tqdm) -> Callable[[int, int], None]:
    """A function (done, total) that moves the bar."""

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress
