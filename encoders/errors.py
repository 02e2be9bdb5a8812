"""The package's error for faults that a user can fix."""


class EncoderError(Exception):
    """A fault in a saved encoder or its use; its message is one clear line."""
