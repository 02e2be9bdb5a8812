"""The command line that calls this program, for hints that work as typed."""

import shlex
import shutil
import sys
from pathlib import Path

PROGRAM = (sys.executable, '-m', 'scripts.main')
"""The command that starts this program in another process."""


def command(*arguments: object) -> str:
    """A command of this program, quoted for a shell: `fql train --resume runs/cube`.

    Where no `fql` is on the search path, the program is named as the user called it.
    """
    return shlex.join([*_program(), *map(str, arguments)])


def _program() -> list[str]:
    if shutil.which('fql'):
        return ['fql']
    called = sys.argv[0]
    return [called] if Path(called).name == 'fql' else list(PROGRAM)
