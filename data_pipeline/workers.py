"""Spawned worker processes, which die with what they started; for `multiprocessing`'s pitfalls.

Spawned, not forked: they never have what this process has imported. Imports nothing that is slow or
that may not be where environments are rendered.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Self

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class WorkerGroup:
    """Processes at the other ends of pipes; a context manager, which kills those that still run.

    Attributes:
        connections: this process's ends of the pipes, by the worker's index. Reading one whose
            worker has died raises EOFError or OSError.
    """

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Starts a worker, which calls `work(connection, *arguments)` and ends.

        Args:
            work: a function of a module; what it raises because this process is gone is dropped.
        """
        connection, process = _spawn(work, *arguments)
        self.connections.append(connection)
        self._processes.append(process)

    def replace(self, index: int, work: Callable[..., None], *arguments: Any) -> None:
        """Kills a worker, also one that hangs, and starts another in its place; see `start`."""
        self._kill(index)
        self.connections[index], self._processes[index] = _spawn(work, *arguments)

    def exit_code(self, index: int, seconds: float | None = None) -> int | None:
        """Waits for the end of a worker, no longer than this; None if it still runs."""
        self._processes[index].join(seconds)
        return self._processes[index].exitcode

    def close(self, seconds: float) -> None:
        """Closes the pipes, by which workers that read know the end.

        Those that still run after this time are killed.
        """
        for connection in self.connections:
            connection.close()
        deadline = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
        self.kill()

    def kill(self) -> None:
        """Ends the workers and what they started; importing glfw, say, starts Python."""
        for index in range(len(self._processes)):
            self._kill(index)

    def _kill(self, index: int) -> None:
        self.connections[index].close()
        process = self._processes[index]
        if process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # It has not made its group yet.
                process.kill()
        process.join()


def _spawn(work: Callable[..., None], *arguments: Any) -> tuple[Connection, Any]:
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(work, theirs, *arguments), daemon=True)
    with _sigint_blocked():
        process.start()
    theirs.close()  # Else the pipe would stay open when the worker dies.
    return ours, process


def _run(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    os.setpgrp()  # For `kill`.
    _die_with_parent()
    with suppress(BrokenPipeError, ConnectionResetError):  # The parent is gone.
        work(connection, *arguments)


def _die_with_parent() -> None:
    """Has Linux kill this process when the one that started it is gone, stopped or hanging too.

    For Linux that is the thread that did. Elsewhere, and where it is gone already, the closed pipe
    ends this process when it reads.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started inside never see SIGINT: Ctrl-C is for the parent, which ends them."""
    # Started with the first process otherwise, which unblocks SIGINT before that process starts.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
