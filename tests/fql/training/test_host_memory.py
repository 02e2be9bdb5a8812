"""Freed memory is reused without page faults."""

import platform

import pytest

FAULTS = """
import resource, sys, threading
import numpy as np
from fql.training.host_memory import keep_freed_memory

if sys.argv[1] == 'kept':
    keep_freed_memory()

def work():
    for _ in range(3):
        for nbytes in (12 << 20, 200 << 20):  # A batch, and what an update needs for itself.
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(nbytes, np.uint8)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)

counts = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(sum(counts[2:]))
"""


GAPS = """
import numpy as np
from fql.training.host_memory import give_back_freed_memory, keep_freed_memory
from scripts.benchmark.memory import anonymous_megabytes

keep_freed_memory()
blocks = [np.ones(1 << 20, np.uint8) for _ in range(100)]
del blocks[:-1]  # The last one keeps the heap from shrinking.
before = anonymous_megabytes()
give_back_freed_memory()
print(before - anonymous_megabytes())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='is a matter of glibc')


@pytest.mark.parametrize(('how', 'least', 'most'), [('kept', 0, 50), ('given back', 100, 10**6)])
def test_pages_are_kept(run_python, how, least, most):
    result = run_python(FAULTS, how)
    assert result.returncode == 0, result.stderr
    assert least <= int(result.stdout) <= most


def test_gaps_are_given_back(run_python):
    result = run_python(GAPS)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 90
