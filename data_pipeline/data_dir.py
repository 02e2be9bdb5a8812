"""The folders of prepared datasets and compiled programs, and the valid names of datasets."""

import os
from pathlib import Path

from data_pipeline.errors import DataError

_COLLECTED, _DOWNLOADS, _COMPILED = 'collected', 'downloads', 'compilation-cache'
_LONGEST_NAME = 200  # less than the usual 255, as locks and temporary folders add to it


def resolve_data_dir(data_dir: str) -> Path:
    """The folder chosen by `--data-dir` or `$FQL_DATA_DIR`, else the user's cache folder.

    Args:
        data_dir: the value of `--data-dir`; empty if it is not given.

    Raises:
        DataError: its name has control characters, such as line breaks.
    """
    chosen = data_dir or os.environ.get('FQL_DATA_DIR', '')
    if any(char < ' ' for char in chosen):
        name = '--data-dir' if data_dir else '$FQL_DATA_DIR'
        raise DataError(f'{name}: {chosen!r} has characters that are not printable')
    return Path(os.path.expanduser(chosen)).absolute() if chosen else _user_cache_dir()


def data_dir_arguments(data_dir: str) -> list[str]:
    """The arguments by which another command finds the same folder, if it needs any."""
    folder = resolve_data_dir(data_dir)
    return [] if folder == resolve_data_dir('') else ['--data-dir', str(folder)]


def dataset_folder(data_dir: str, name: str) -> Path:
    """The folder of a dataset's store, inside `resolve_data_dir(data_dir)`.

    Raises:
        DataError: the name is not valid, see `check_name`, or of a folder with another use.
    """
    if name in (_COLLECTED, _DOWNLOADS, _COMPILED):
        raise DataError(
            f'{name!r} cannot be the name of a dataset: the data folder has a folder of this name '
            'with another use; choose another name'
        )
    return resolve_data_dir(data_dir) / check_name(name)


def collected_file(data_dir: str, name: str) -> Path:
    """The file, inside `resolve_data_dir(data_dir)`, that `fql collect` writes by default.

    Raises:
        DataError: the name is not valid; see `check_name`.
    """
    return resolve_data_dir(data_dir) / _COLLECTED / f'{check_name(name)}.npz'


def downloads_folder(data_dir: str) -> Path:
    """The folder, inside `resolve_data_dir(data_dir)`, of downloaded files."""
    return resolve_data_dir(data_dir) / _DOWNLOADS


def check_name(name: str) -> str:
    """Return the name of a dataset, split or array if it is valid as the name of a folder or file.

    Raises:
        DataError: it would lead to another folder, be hidden, or not be a valid file name.
    """
    is_sound = (
        name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_NAME
        and not set(name) & {'/', '\\'}
        and name[0] not in '.-'
    )
    if not is_sound:
        raise DataError(
            f'{name!r} is not a valid name: it must be the name of a folder, without slashes, that '
            f'does not begin with . or -, of at most {_LONGEST_NAME} bytes'
        )
    return name


def compilation_cache_dir() -> Path:
    """The folder of JAX's compiled programs, in the user's cache folder.

    They are machine code, and other users may be able to write to a data folder.
    """
    return _user_cache_dir() / _COMPILED


def _user_cache_dir() -> Path:
    import platformdirs  # Here, so that benchmarks run without it.

    return Path(platformdirs.user_cache_dir('fql')).absolute()
