"""The package's error for faults that a user can fix."""


class FQLError(Exception):
    """A fault in what the user asked for or in the machine; its message is one clear line.

    (For an environment that failed, the place of the failure follows.)
    """
