"""The package's error for faults that a user can fix, and where other errors come from."""


class FQLError(Exception):
    """A fault in what the user asked for or in the machine; its message is one clear line.

    (For an environment that failed, the place of the failure follows.)
    """


def comes_from_interrupt(error: BaseException | None) -> bool:
    """Whether an exception was raised because of a Ctrl-C, which Orbax turns into its own fault."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
