"""At most one process does a piece of work that writes files."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import DataError


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Holds the lock file `path` while active; the system frees it when the process dies.

    The file stays: were it removed, two processes could hold locks on two files of its name.

    Args:
        work: what the process that holds it does, for the message to another one.

    Raises:
        DataError: another process holds it.
    """
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f'{path}: another process {work}; wait for it') from error
        yield
