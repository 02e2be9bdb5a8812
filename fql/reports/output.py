"""Output of a command beside a run: a table, a JSON file, a picture; nothing is overwritten."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import files
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


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report and say where, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, report)
        print(f'wrote {path}')


def print_notice(notice: str) -> None:
    """Print a line for the user to standard error; standard output is for the result alone."""
    print(notice, file=sys.stderr)
