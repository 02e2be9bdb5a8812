"""How environments are constructed, and which OpenGL renders them: for all that make one.

MuJoCo, gymnasium and OGBench are imported inside: for processes that never import TensorFlow, which
crashes beside Mesa's software OpenGL.
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
    """Has MuJoCo render without a screen where there is none; to be called before its import.

    Args:
        is_rendering: whether anything is drawn; if nothing is, machines without OpenGL will do.
    """
    if not is_rendering:
        os.environ['MUJOCO_GL'] = 'disable'
    elif sys.platform == 'linux' and not os.environ.get('DISPLAY'):
        os.environ.setdefault('MUJOCO_GL', 'egl')


def render_in_one_thread() -> None:
    """For one of several rendering processes; to be called before MuJoCo is imported.

    Software OpenGL starts as many threads as there are cores in every process; two processes on two
    cores render twice as fast without.
    """
    os.environ.setdefault('LP_NUM_THREADS', '0')


def construct(env_id: str, **kwargs: Any) -> Any:
    """`gymnasium.make` of an id of OGBench, or of 'module:id', which importing `module` registers.

    The module is looked for where Python looks, then in the current folder.

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
    """Whether an environment could not be made for want of OpenGL."""
    return bool(_OPENGL_TRACE.search(''.join(traceback.format_exception(error))))
