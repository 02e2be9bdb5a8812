"""What the arguments of several commands share."""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import tyro

from data_pipeline.store.verification import VerifyMode
from fql.errors import FQLError
from fql.settings.bounds import BOUNDS, check_bounds

DataDir = Annotated[
    str,
    tyro.conf.arg(
        metavar='DIR',
        help="Data folder; default $FQL_DATA_DIR, else under the user's cache folder.",
    ),
]
VerifyData = Annotated[
    VerifyMode,
    tyro.conf.arg(
        help='Compare the data with their checksums while training starts: once, until a file '
        'changes; always; or never. The first checkpoint waits for it.',
    ),
]
JsonOut = Annotated[
    Path | None,
    tyro.conf.arg(help='Also write all numbers to this file, which must not exist.'),
]
BOUNDS_OF_ARGUMENTS = {
    **BOUNDS,
    'step': (0, 2**31 - 1),
    'episodes': (1, 10**6),
    'val_episodes': (0, 10**6),
    'episode_steps': (1, 10**6),
    'noise': (0, 100),
    'p_random_action': (0, 1),
    'frame_size': (1, 4096),
    'image_size': (1, 4096),
    'workers': (0, 4096),
    'rows': (1, 2**31 - 1),
    'states': (1, 2**20),
    'target': (0, 2**31 - 1),
    'rounds': (1, 10**6),
    'batches': (1, 2**31 - 1),
    'updates': (1, 2**31 - 1),
    'kills': (1, 10**6),
    'jobs': (1, 4096),
    'gpus': (0, 1023),
    'env_steps': (1, 10**6),
    'memory_steps': (1, 10**9),
}
"""Smallest and largest value of every number in a command's arguments, by the field's name."""


def check_values(args: Any) -> None:
    """Raise FQLError for a number out of its bounds, or a name that cannot be a user's file.

    That is a device or a pipe, a name with line breaks, which would break messages too, or one with
    a backslash, in which Orbax would not find again what it has written.
    """
    check_bounds(args, BOUNDS_OF_ARGUMENTS)
    for path in _paths(args):
        if any(ord(character) < 32 or character == '\\' for character in str(path)):
            raise FQLError(f'{str(path)!r} has a line break, a backslash or a control character')
        is_odd = False
        with suppress(OSError, ValueError):  # No file can have this name.
            is_odd = path.exists() and not (path.is_file() or path.is_dir())
        if is_odd:
            raise FQLError(f'{path} is a device, a pipe or a socket, not a file or a folder')


def _paths(args: Any) -> Iterator[Path]:
    """All fields that may name a file in the arguments, or in what is nested in them."""
    for entry in dataclasses.fields(args):
        value = getattr(args, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _paths(value)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str | Path):
                yield Path(item)


def value_of(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, read before the arguments are parsed; None without the flag.

    Of a flag that is given several times the last value counts, as when they are parsed.
    """
    value = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument == flag:
            value = following
        elif argument.startswith(f'{flag}='):
            value = argument.removeprefix(f'{flag}=')
    return value


def name_of(argument: str) -> str:
    """The flag's name in an argument, without dashes before it; empty where it is none."""
    flag = argument.partition('=')[0]
    return flag.removeprefix('--').replace('_', '-') if flag.startswith('--') else ''
