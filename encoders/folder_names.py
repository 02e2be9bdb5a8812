"""Names of folders in which Orbax would not find again what it wrote."""

from pathlib import Path


def unreadable_in(folder: Path) -> str:
    """What in the name of a folder keeps Orbax from reading there what it wrote; else empty.

    It merges the files of a save, and finds arrays, by patterns that begin with the folder's name.
    """
    name = str(folder.absolute())
    if name.encode(errors='replace').decode() != name:
        return 'what is no UTF-8'
    return next((repr(char) for char in '\\*?[' if char in name), '')
