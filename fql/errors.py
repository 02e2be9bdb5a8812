"""The error of this package that a user can mend."""


class FQLError(Exception):
    """A fault in what the user asked for or in the machine; its message is one clear line."""
