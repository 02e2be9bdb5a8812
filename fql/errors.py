"""The error of this package that a user can mend, and other errors in one line."""


class FQLError(Exception):
    """A fault in what the user asked for or in the machine; its message is one clear line.

    (Behind that of an environment that failed comes where it did.)
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
