"""The errors of this package that a user can resolve, and other errors in one line."""


class DataError(Exception):
    """A fault in a dataset or a frame store; its message is one clear line."""


class DamagedError(DataError):
    """Stored data differ from what was written."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
