"""Spawned worker processes, which are killed together with the processes that they started.

They are spawned, not forked, so that they do not inherit what this process has imported. Imports
nothing that is slow or forbidden in processes that render.
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
    """Worker processes connected by pipes; a context manager, which kills those that still run.

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
        """Start a worker, which calls `work(connection, *arguments)` and ends.

        Args:
            work: a function of a module; what it raises because this process has died is ignored.
        """
        connection, process = _spawn(work, *arguments)
        self.connections.append(connection)
        self._processes.append(process)

    def replace(self, index: int, work: Callable[..., None], *arguments: Any) -> None:
        """Kill a worker, even one that hangs, and start another in its place; see `start`."""
        self._kill(index)
        self.connections[index], self._processes[index] = _spawn(work, *arguments)

    def exit_code(self, index: int, seconds: float | None = None) -> int | None:
        """Wait for the end of a worker, up to the time limit; None if it still runs."""
        self._processes[index].join(seconds)
        return self._processes[index].exitcode

    def close(self, seconds: float) -> None:
        """Close the pipes, so that workers that read from them end.

        Workers that still run after the time limit are killed.
        """
        for connection in self.connections:
            connection.close()
        deadline = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
        self.kill()

    def kill(self) -> None:
        """Kill the workers and the processes that they started (importing glfw starts one)."""
        for index in range(len(self._processes)):
            self._kill(index)

    def _kill(self, index: int) -> None:
        self.connections[index].close()
        process = self._processes[index]
        # Processes that a dead worker started keep its process group; where there is a process of
        # its number again, it is another one.
        if process.is_alive() or not _exists(process.pid):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.is_alive():  # The worker may not have made its process group yet.
            process.kill()
        process.join()


def _exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # Another user's.
        return True
    return True


def _spawn(work: Callable[..., None], *arguments: Any) -> tuple[Connection, Any]:
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(work, theirs, *arguments), daemon=True)
    with _sigint_blocked():
        process.start()
    theirs.close()  # Otherwise the pipe would stay open when the worker dies.
    return ours, process


def _run(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    os.setpgrp()  # `kill` ends this process group.
    _die_with_parent()
    with suppress(BrokenPipeError, ConnectionResetError):  # The parent has died.
        work(connection, *arguments)


def _die_with_parent() -> None:
    """Make Linux kill this process when its parent dies, even if this process is stopped or hangs.

    For Linux the parent is the thread that started it. On other systems, and where the parent has
    died already, the closed pipe ends this process when it reads.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in processes started inside: Ctrl-C is for the parent, which ends them."""
    # Otherwise the first process would start it, which unblocks SIGINT before that process starts.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
