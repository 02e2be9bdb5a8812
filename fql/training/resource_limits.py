"""Whether a run fits into memory, and into the limit of open files, before anything is made."""

import math
import resource

import jax

from data_pipeline.machine import available_memory
from fql.errors import FQLError
from fql.learner import Learner, TrainState

OPEN_FILES = 256
"""Open files that a run may need: 32 are too few for a save, which opens many at once."""
MOST_OPEN_FILES = 65_536
"""Open files that are enough for all runs: each array of each online environment is one, or two."""


def check_open_files() -> None:
    """Raise the soft limit of open files; raise FQLError if too few may be open for a save.

    Orbax fails at any place then, with many tracebacks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if most < OPEN_FILES:
        raise FQLError(
            f'only {hard} files may be open at once (ulimit -n): a run needs {OPEN_FILES}'
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def check_memory(learner: Learner, abstract: TrainState, batch_bytes: int) -> None:
    """Raise FQLError if a run needs more memory than there is; give both amounts.

    It counts what every run needs: parameters, target and optimiser, a gradient, and a batch
    where it is made and on the device.

    Args:
        abstract: shapes and shardings of the state.
        batch_bytes: of this process's part of a batch.
    """
    device = jax.local_devices()[0]
    devices = jax.local_device_count()
    state = _bytes(abstract) + _bytes(learner.trained(abstract.params))
    on_devices = devices * state + batch_bytes
    if device.platform == 'cpu':
        needs = {'this process': (on_devices + batch_bytes, available_memory())}
    else:
        limit = (device.memory_stats() or {}).get('bytes_limit')
        needs = {
            device.device_kind: (on_devices, limit and devices * limit),
            'this process': (batch_bytes, available_memory()),
        }
    for place, (needed, there) in needs.items():
        if there is not None and needed > there:
            raise FQLError(
                f'parameters, target, optimiser and a batch need {needed / 1e9:,.1f} GB of memory, '
                f'{place} can have {there / 1e9:,.1f} GB; choose a smaller --hidden-dims, '
                '--encoder or --batch-size'
            )


def _bytes(tree: object) -> int:
    """Bytes of one device's part of the leaves."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
