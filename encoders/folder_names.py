"""Names of folders in which Orbax would not find again what it wrote."""

from pathlib import Path


def name_fault(folder: Path) -> str:
    """Why Orbax could not read in a folder of this name what it wrote there; empty if it could.

    It merges the files of a save, and finds arrays, by patterns that begin with the folder's name.
    """
    name = str(folder.absolute())
    part = next((repr(char) for char in '\\*?[' if char in name), '')
    if name.encode(errors='replace').decode() != name:
        part = 'what is no UTF-8'
    return f'{folder}: Orbax cannot read from a folder with {part} in its name' if part else ''
