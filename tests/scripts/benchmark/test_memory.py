"""The memory of a process, watched while it is used."""

import platform

import pytest

from scripts.benchmark.memory import watched_memory


@pytest.mark.skipif(platform.system() != 'Linux', reason='only Linux reports it')
def test_memory_is_watched():
    size = 80_000_000
    with watched_memory() as growth:
        block = bytearray(size)
        while len(growth) < 3:
            block[::4096] = bytes(len(block[::4096]))
        del block
    assert max(growth) > 0.9 * size / 1e6
