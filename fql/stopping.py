"""Immediate exit on SIGINT, SIGTERM and SIGHUP, with the exit code of what can be run again.

`fql.runs.interruption` takes over while updates are made. Imports little: it comes first.
"""

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path
from types import FrameType

EXIT_CODE = 42
"""Exit code of a run that was asked to stop and can be resumed."""


def leave_on_signals() -> None:
    """From here on, SIGINT and SIGTERM end this process, and what it started, with `EXIT_CODE`.

    For a run's work before its first update, which may be interrupted anywhere, as by a kill: the
    same command does the missing part. An exception raised here could get lost in a library.

    SIGHUP, of a terminal that is closed, counts as SIGTERM, unless it is ignored, as under `nohup`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _hang_up)


def _hang_up(number: int, frame: FrameType | None) -> None:
    ignore_hang_up()
    _give_up_terminal()
    signal.raise_signal(signal.SIGTERM)


def _give_up_terminal(number: int = 0, frame: FrameType | None = None) -> None:
    """Discard what is printed from here on to a closed terminal, where it would fail."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def ignore_hang_up() -> None:
    """End the effect of SIGHUP: to be called at the first of the signals that ask for a stop.

    A closed terminal sends it up to twice, and systemd sends it after SIGTERM; it must not count as
    the second request, which is one to end at once.
    """
    if signal.getsignal(signal.SIGHUP) is _hang_up:
        signal.signal(signal.SIGHUP, _give_up_terminal)


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
