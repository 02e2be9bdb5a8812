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
from typing import Any

_OPENGL_TRACE = re.compile(r'MUJOCO_GL|OpenGL|gladLoadGL|EGL|mujoco/(egl|glfw|osmesa|rendering)')


def choose_opengl(*, is_rendering: bool = True) -> None:
    """Makes MuJoCo render without a screen where there is none; call it before MuJoCo's import.

    Args:
        is_rendering: whether anything is drawn; if not, no OpenGL is needed.
    """
    if not is_rendering:
        os.environ['MUJOCO_GL'] = 'disable'
    elif sys.platform == 'linux' and not os.environ.get('DISPLAY'):
        os.environ.setdefault('MUJOCO_GL', 'egl')


def render_in_one_thread() -> None:
    """Makes software OpenGL render in the calling thread; call it before MuJoCo's import.

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


def is_opengl_fault(error: Exception) -> bool:
    """Whether an environment could not be made because OpenGL is missing."""
    return bool(_OPENGL_TRACE.search(''.join(traceback.format_exception(error))))
