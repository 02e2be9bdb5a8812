"""The errors of this package that a user can resolve."""


class DataError(Exception):
    """A fault in a dataset or a frame store; its message is one clear line."""


class DamagedError(DataError):
    """Stored data differ from what was written."""
