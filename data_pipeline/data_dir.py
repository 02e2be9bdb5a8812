"""Where prepared datasets and compiled programs lie, and what datasets may be called."""

import os
from pathlib import Path

from data_pipeline.errors import DataError

_LONGEST_NAME = 200  # of 255 that file systems take, as locks and temporary folders add to it


def resolve_data_dir(flag: str) -> Path:
    """The folder a user chose by `--data-dir`, by `$FQL_DATA_DIR`, or a cache folder of theirs."""
    chosen = flag or os.environ.get('FQL_DATA_DIR')
    return Path(chosen).expanduser().absolute() if chosen else _user_cache_dir()


def dataset_folder(flag: str, name: str) -> Path:
    """The folder of a dataset's store within that of `resolve_data_dir`.

    Raises:
        DataError: the name is not that of a dataset.
    """
    return resolve_data_dir(flag) / check_name(name)


def check_name(name: str) -> str:
    """The name of a dataset, split or array, which becomes that of a folder or file.

    Raises:
        DataError: it would lead elsewhere, be hidden, or be no file's name.
    """
    is_sound = (
        name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_NAME
        and not set(name) & {'/', '\\'}
        and name[0] not in '.-'
    )
    if not is_sound:
        raise DataError(
            f'{name!r} cannot be a name: it must be a single name of a folder, without slashes, '
            'and must not begin with . or -'
        )
    return name


def compilation_cache_dir() -> Path:
    """Where JAX keeps compiled programs: in the user's own cache folder.

    They are machine code. Others may be able to write a data folder.
    """
    return _user_cache_dir() / 'compilation-cache'


def _user_cache_dir() -> Path:
    import platformdirs  # Here, so that benchmarks run where it is not installed.

    return Path(platformdirs.user_cache_dir('fql')).absolute()
