"""How much anonymous memory a process has, now and while something runs."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.01


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """A list that repeatedly gets the growth of anonymous memory (MB) while active."""
    before = anonymous_megabytes()
    growth = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            growth.append(anonymous_megabytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


def anonymous_megabytes() -> float:
    """This process's anonymous memory (RssAnon); NaN where the system does not report it."""
    status = Path('/proc/self/status')
    found = re.search(r'RssAnon:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return int(found.group(1)) / 1e3 if found else float('nan')
