"""What commands print, and the check that the files which they write are new."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fql.errors import FQLError


def check_new(path: Path | None) -> None:
    """Raise FQLError if a file that is to be written exists."""
    if path is not None and os.path.lexists(path):  # Also a broken link.
        raise FQLError(f'{path} exists; delete it or name another file')


def check_new_picture(path: Path | None) -> None:
    """Raise FQLError if a picture that is to be drawn exists, or is not named as a PNG.

    Matplotlib would take the format, and even another name, from the ending.
    """
    if path is not None and path.suffix != '.png':
        raise FQLError(f'{path}: only .png pictures are written')
    check_new(path)


def format_summary(entries: Mapping[str, str]) -> str:
    """A line `NAME: TEXT` for each entry, the names right-aligned to 13 columns."""
    return '\n'.join(f'{name:>13}: {text}' for name, text in entries.items())


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left_columns: int = 1
) -> str:
    """Columns as wide as they need to be; the first ones left-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i < left_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def print_notice(notice: str) -> None:
    """Print a line for the user to standard error; standard output is for the result alone."""
    print(notice, file=sys.stderr)
