"""The error of this package that a user can mend."""


class EncoderError(Exception):
    """A fault in a saved encoder or its use; its message is one clear line."""
