"""How a process keeps memory for its own next use, and how much it has."""

import ctypes
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of glibc's mallopt, in the order of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 64 << 20
_POLL_SECONDS = 0.01

GIVE_BACK_INTERVAL = 1_000
"""Batches or updates after which to give back what is free."""


def keep_freed_memory() -> None:
    """Has glibc use memory that is freed again, rather than give it back to the system at once.

    Updates and batches need blocks of the same sizes again and again. Left to itself, glibc maps
    and unmaps the large ones each time, and every page of them costs a fault: on CPUs a tenth of an
    update with an encoder, a third of one on cached latents, half of a batch. One arena holds all,
    since those of threads cannot keep blocks of more than 64 MB.

    To be called before threads are started. Nothing is done where there is no glibc.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_TOP_PAD, _TOP_PAD)


def give_back_freed_memory() -> None:
    """Gives the system all pages that hold nothing, after `keep_freed_memory`, once.

    Groups of a batch have ever other sizes and leave gaps: without this, some hundred thousand
    batches made the process 50 MB larger. It takes some 10 ms, and the pages are faulted in again.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == 'glibc'


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """A list that gets the growth of anonymous memory (MB) again and again while active."""
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
    """This process's anonymous memory (RssAnon); NaN where the system does not tell."""
    status = Path('/proc/self/status')
    found = re.search(r'RssAnon:\s+(\d+) kB', status.read_text()) if status.exists() else None
    return int(found.group(1)) / 1e3 if found else float('nan')
