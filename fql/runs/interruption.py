"""Stopping a run in good order on SIGINT and SIGTERM; SIGHUP is passed on as SIGTERM."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from data_pipeline.errors import first_line
from fql.stopping import ignore_hang_up


class Interrupted(Exception):
    """Raised inside long work, where it can be left, after a stop was requested."""


@contextmanager
def ended_with_others() -> Iterator[None]:
    """Inside, this process ends at once, in one line, when another one of the run has died.

    Orbax and JAX would wait for that one for minutes, and then abort with a hundred lines.
    """
    try:
        yield
    except Exception as error:
        # The cause is JAX's where saving has made a SaveError of it.
        first = error.__cause__ or error
        is_lost = isinstance(first, jax.errors.JaxRuntimeError) and 'Gloo' in str(first)
        if jax.process_count() == 1 or not is_lost:
            raise
        print(
            f'\nfql: another process of this run has ended ({first_line(first)}); '
            'start all of them again, with --resume',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


class Interruption:
    """While active, the first SIGINT or SIGTERM is only noted; the second acts as usual.

    With several processes JAX's own notice of a SIGTERM to any of them is used, so that all stop
    at the same step; SIGINT then acts as usual.
    """

    def __init__(self) -> None:
        self._requested = False
        self._asked_step: int | None = None
        self._previous: dict[int, object] = {}

    def raise_if_requested(self, step: int) -> None:
        """Raise Interrupted after a first signal; with several processes, all call it.

        Args:
            step: updates made, more than at the last call.
        """
        if jax.process_count() > 1:
            # The step at which all stop is any one after the signal; JAX must be asked about it.
            first = step if self._asked_step is None else self._asked_step + 1
            for passed in range(first, step + 1):
                self._requested |= multihost_utils.reached_preemption_sync_point(passed)
            self._asked_step = step
        self.raise_if_noted()

    def raise_if_noted(self) -> None:
        """Raise Interrupted after a first signal to this process, which must be the only one."""
        if self._requested:
            raise Interrupted

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        ignore_hang_up()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __enter__(self) -> 'Interruption':
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
