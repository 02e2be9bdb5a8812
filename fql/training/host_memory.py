"""How a process keeps memory for its own next use."""

import ctypes
import platform

# Of glibc's mallopt, in the order of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 64 << 20

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
