"""At most one process of a kind, trainer or watcher, writes into a run folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipeline.files import LockedError, locked
from fql.errors import FQLError


@contextmanager
def lock_run(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock file `path` while active; the system frees it when the process dies.

    Args:
        holder: what the process is, for the message to another one.

    Raises:
        FQLError: another process holds it; names its kind.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, f'writes {path.parent}'))
        except LockedError as error:
            raise FQLError(
                f'{path.parent} is being written by another {holder} ({error.holder})'
            ) from None
        yield
