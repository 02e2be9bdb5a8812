"""Processors and memory that a process may use, with folders in place of /proc and /sys."""

import os
import subprocess
import sys

import pytest

from data_pipeline.machine import available_memory, available_processors

GB = 2**30


def machine(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight_processors(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)


V2 = 'sys/fs/cgroup'
V1 = 'sys/fs/cgroup/cpu'


@pytest.mark.parametrize(
    ('files', 'processors'),
    [
        ({}, 8),
        ({'proc/self/cgroup': '0::/\n', f'{V2}/cpu.max': 'max 100000\n'}, 8),
        ({'proc/self/cgroup': '0::/\n', f'{V2}/cpu.max': '200000 100000\n'}, 2),
        ({'proc/self/cgroup': '0::/\n', f'{V2}/cpu.max': '50000 100000\n'}, 1),
        ({'proc/self/cgroup': '0::/\n', f'{V2}/cpu.max': '250000 100000\n'}, 3),
        # The smallest quota of a cgroup and its parents applies.
        (
            {
                'proc/self/cgroup': '0::/job/step\n',
                f'{V2}/job/cpu.max': '400000 100000\n',
                f'{V2}/job/step/cpu.max': 'max 100000\n',
            },
            4,
        ),
        # A container sees the host's path and, as the mount, its own cgroup.
        ({'proc/self/cgroup': '0::/docker/abc\n', f'{V2}/cpu.max': '300000 100000\n'}, 3),
        (
            {
                'proc/self/cgroup': '9:cpuset:/\n4:cpu,cpuacct:/job\n0::/\n',
                f'{V1}/job/cpu.cfs_quota_us': '200000\n',
                f'{V1}/job/cpu.cfs_period_us': '100000\n',
                f'{V1}/cpu.cfs_quota_us': '-1\n',
                f'{V1}/cpu.cfs_period_us': '100000\n',
            },
            2,
        ),
    ],
)
def test_a_quota_of_cgroups_is_kept(tmp_path, eight_processors, files, processors):
    assert available_processors(machine(tmp_path, files)) == processors


def test_affinity_is_kept(run_python):
    processor = min(os.sched_getaffinity(0))
    done = run_python(
        f'import os; os.sched_setaffinity(0, [{processor}])\n'
        'from data_pipeline.machine import available_processors\n'
        'print(available_processors())'
    )
    assert done.stdout == '1\n', done.stderr


MEMINFO = f'MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\nSwapFree: {1 << 20} kB\n'


@pytest.mark.parametrize(
    ('files', 'gigabytes'),
    [
        ({'proc/meminfo': MEMINFO}, 9),
        (
            {
                'proc/meminfo': MEMINFO,
                'proc/self/cgroup': '0::/job\n',
                f'{V2}/job/memory.max': f'{4 * GB}\n',
            },
            4,
        ),
        (
            {
                'proc/meminfo': MEMINFO,
                'proc/self/cgroup': '3:memory:/job\n',
                f'{V2}/memory/memory.limit_in_bytes': '9223372036854771712\n',
                f'{V2}/memory/job/memory.limit_in_bytes': f'{2 * GB}\n',
            },
            2,
        ),
    ],
)
def test_memory_is_the_smallest_of_what_limits_it(tmp_path, files, gigabytes):
    assert available_memory(machine(tmp_path, files)) == gigabytes * GB


def test_memory_is_unknown_without_proc(tmp_path):
    assert available_memory(tmp_path) is None


@pytest.mark.skipif(sys.platform != 'linux', reason='/proc')
def test_this_machine_is_known():
    total = int(subprocess.check_output(['awk', '/MemTotal/ {print $2}', '/proc/meminfo'])) * 1024
    assert 0 < available_memory() <= 2 * total
