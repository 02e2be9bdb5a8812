"""Verification that a run waits for before it trusts its data."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipeline.errors import DamagedError
from data_pipeline.store.frame_store import FrameStore
from data_pipeline.store.verification import Verification
from fql.runs.progress import progress_bar, progress_callback


def finish_verification(
    verification: Verification, between: Callable[[], None] = lambda: None
) -> None:
    """Wait, with a bar if that takes time, until this process has verified the data as they are.

    Args:
        between: called several times a second while waiting.

    Raises:
        DamagedError: they are not what was written.
    """
    if verification.is_done():
        return
    with progress_bar('verify the data', 'B') as bar:
        verification.wait(progress_callback(bar), between)


def verify_once(store: FrameStore) -> None:
    """Compare a store's arrays with their checksums, if they have changed since that was last done.

    Raises:
        DamagedError: they are not what was written.
    """
    with Verification(store.path, 'once') as verification:
        verification.add(store.stored_arrays)
        finish_verification(verification)


def agree_on_verification(verification: Verification, between: Callable[[], None]) -> None:
    """`finish_verification` in all processes: all have to call it, and all raise or none.

    Args:
        between: as there, with one process; not called with several.
    """
    if jax.process_count() == 1:
        finish_verification(verification, between)
        return
    fault = None
    try:
        finish_verification(verification)
    except DamagedError as error:
        fault = error
    if multihost_utils.process_allgather(np.array(fault is not None)).any():
        raise fault or DamagedError('another process found damaged data; see its message')
