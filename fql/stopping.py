"""Immediate exit on SIGINT and SIGTERM, with the exit code of what can be run again.

`fql.training.interruption` takes over while updates are made. Imports little: it comes first.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

EXIT_CODE = 42
"""Exit code of a run that was asked to stop and can be resumed."""


def leave_on_signals() -> None:
    """From here on, SIGINT and SIGTERM end this process, and what it started, with `EXIT_CODE`.

    For a run's work before its first update, which may be interrupted anywhere, as by a kill: the
    same command does the missing part. An exception raised here could get lost in a library.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(Exception):  # What is being printed just now cannot be flushed.
        sys.stdout.flush()
    # One that is just being started would print that this process is gone.
    for children in Path('/proc/self/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.write(2, b'\nfql: stopped; run it again, with --resume if there is a run folder\n')
    os._exit(EXIT_CODE)


def leave_on_interrupt() -> None:
    """From here on, until `raise_on_interrupt`, SIGINT ends this process in one line.

    While Python imports, a KeyboardInterrupt would be a traceback, or abort a library.
    """
    signal.signal(signal.SIGINT, _interrupted)


def raise_on_interrupt() -> None:
    """End the effect of `leave_on_interrupt`: SIGINT raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b'\nfql: interrupted\n')
    os._exit(128 + signal.SIGINT)
