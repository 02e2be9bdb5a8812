"""Construction of environments, and the choice of the OpenGL that renders them.

MuJoCo, gymnasium and OGBench are imported inside functions. Processes that call these never import
TensorFlow, which crashes in one process with Mesa's software OpenGL.
"""

import importlib
import os
import re
import sys
import traceback
import warnings
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_OPENGL_TRACE = re.compile(r'MUJOCO_GL|OpenGL|gladLoadGL|EGL|mujoco/(egl|glfw|osmesa|rendering)')


def choose_opengl(*, is_rendering: bool = True) -> None:
    """Make MuJoCo render without a screen where there is none; call it before MuJoCo's import.

    Args:
        is_rendering: whether anything is drawn; if not, no OpenGL is needed.
    """
    if not is_rendering:
        os.environ['MUJOCO_GL'] = 'disable'
    elif sys.platform == 'linux' and not os.environ.get('DISPLAY'):
        os.environ.setdefault('MUJOCO_GL', 'egl')


def render_in_one_thread() -> None:
    """Make software OpenGL render in the calling thread; call it before MuJoCo's import.

    Otherwise every process starts as many threads as there are cores. Two processes on two cores
    render twice as fast without these threads.
    """
    os.environ.setdefault('LP_NUM_THREADS', '0')


def construct(env_id: str, **kwargs: Any) -> Any:
    """`gymnasium.make` of OGBench's ids, or of 'module:id' after importing `module`.

    The module is searched on Python's path, then in the current folder.

    Raises whatever the import or the constructor does.
    """
    # OGBench's manipulation environments make a new action space at each use, with float64.
    warnings.filterwarnings('ignore', message='.*precision lowered by casting')
    import gymnasium

    module = env_id.rpartition(':')[0] or 'ogbench'
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # Last, so that no file there hides an installed module.
    importlib.import_module(module)

    # The checker warns about OGBench's float64 observations and unset render modes.
    return gymnasium.make(env_id, disable_env_checker=True, **kwargs)


def source_files(env_id: str) -> list[Path]:
    """The source of 'module:id': the module's file and, in a package, those beside it.

    The module is found as `construct` finds it, and not imported. Empty for OGBench's own ids, and
    where there is no such module.
    """
    name, *rest = env_id.rpartition(':')[0].split('.')
    with suppress(ValueError):  # A module without a specification, such as an interpreter's own.
        spec = (find_spec(name) if name else None) or PathFinder.find_spec(name, [os.getcwd()])
        for part in rest:
            folders = spec.submodule_search_locations if spec else None
            name = f'{name}.{part}'
            spec = PathFinder.find_spec(name, list(folders)) if folders else None
        if spec and spec.origin and spec.has_location:
            file = Path(spec.origin)
            is_in_package = bool(rest) or spec.submodule_search_locations is not None
            return sorted(file.parent.glob('*.py')) if is_in_package else [file]
    return []


def is_opengl_fault(error: Exception) -> bool:
    """Whether an environment could not be made because OpenGL is missing."""
    return bool(_OPENGL_TRACE.search(''.join(traceback.format_exception(error))))
