"""What the arguments of several commands share."""

import itertools
from pathlib import Path
from typing import Annotated

import tyro

from data_pipeline.store.verification import VerifyMode
from fql.errors import FQLError

DataDir = Annotated[
    str,
    tyro.conf.arg(
        metavar='DIR',
        help='Data folder, which also keeps compiled programs; default $FQL_DATA_DIR, else under '
        "the user's cache folder.",
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


def check_positive(**counts: int) -> None:
    """Raises FQLError if one of the numbers is not."""
    for name, count in counts.items():
        if count < 1:
            raise FQLError(f'{name.replace("_", "-")} must be at least 1, not {count}')


def value_of(words: list[str], flag: str) -> str | None:
    """What a flag is given, read before the words are parsed; None without it."""
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == flag:
            return following
        if word.startswith(f'{flag}='):
            return word.removeprefix(f'{flag}=')
    return None
