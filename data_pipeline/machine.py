"""Processors and memory that this process may use, by affinity and cgroups.

Imports nothing that is slow or forbidden in processes that render.
"""

import math
import os
import re
from contextlib import suppress
from pathlib import Path

ROOT = Path('/')


def available_processors(root: Path = ROOT) -> int:
    """The number of processors that the process may use, at least 1.

    Affinity (set by Slurm and taskset) and the quotas of cgroups v1 and v2 (set by containers) may
    allow fewer than the machine has.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    has_affinity = hasattr(os, 'sched_getaffinity')
    processors = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for folder in _cgroups(root, 'cpu'):
        fields = _fields(folder / 'cpu.max')  # Version 2: quota and period in microseconds.
        fields = fields or [
            *_fields(folder / 'cpu.cfs_quota_us'),
            *_fields(folder / 'cpu.cfs_period_us'),
        ]
        if len(fields) == 2 and fields[0].isdigit():  # 'max' means no quota, in version 1 -1.
            processors = min(processors, math.ceil(int(fields[0]) / int(fields[1])))
    return max(processors, 1)


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes of memory that the process may still use, swap included; None if unknown.

    The full limit of a cgroup counts, since most of what is used there may be the file cache.
    """
    limits = []
    meminfo = root / 'proc/meminfo'
    if meminfo.exists():
        found = dict(re.findall(r'^(\w+): +(\d+) kB$', meminfo.read_text(), re.MULTILINE))
        limits.append(1024 * (int(found['MemAvailable']) + int(found['SwapFree'])))
    for folder in _cgroups(root, 'memory'):
        fields = _fields(folder / 'memory.max') or _fields(folder / 'memory.limit_in_bytes')
        limits += [int(field) for field in fields if field.isdigit()]
    return min(limits, default=None)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """The folders of the process's cgroup and its parents, of version 2 and of `controller`."""
    folders = []
    with suppress(OSError):
        for line in (root / 'proc/self/cgroup').read_text().splitlines():
            _, controllers, path = line.split(':', 2)
            if not controllers:
                mount = root / 'sys/fs/cgroup'
            elif controller in controllers.split(','):
                mount = root / 'sys/fs/cgroup' / controller
            else:
                continue
            # In a container, the path may be the host's: then the mount itself is the cgroup.
            group = mount / path.lstrip('/')
            folders += [
                group,
                *(parent for parent in group.parents if parent.is_relative_to(mount)),
            ]
    return folders


def _fields(path: Path) -> list[str]:
    """The fields of a file, split at white space; none where it cannot be read."""
    try:
        return path.read_text().split()
    except OSError:
        return []
