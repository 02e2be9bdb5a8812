"""At most one process of a kind, trainer or watcher, writes into a run folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fql.errors import FQLError


@contextmanager
def lock_run(path: Path, holder: str) -> Iterator[None]:
    """Holds the lock file `path` while active; the system frees it when the process dies.

    Args:
        holder: what the process is, for the message to another one.

    Raises:
        FQLError: another process holds it; names that.
    """
    with path.open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FQLError(
                f'{path.parent} is being written by another {holder} ({file.read().strip()})'
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield
