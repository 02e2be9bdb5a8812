"""Fixtures for all tests."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nearly all of the suite's time is compilation. Programs are compiled at once rather than well, and
# the processes of pytest-xdist, and those that tests start, inherit these variables: what one of
# them has compiled, none compiles again.
COMPILED_AT_ONCE = '--xla_backend_optimization_level=0'
if COMPILED_AT_ONCE not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {COMPILED_AT_ONCE}'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='fql-tests-compiled-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
    MADE_CACHE = os.environ['JAX_COMPILATION_CACHE_DIR']
else:
    MADE_CACHE = ''


def pytest_unconfigure() -> None:
    """Removes the compiled programs, in the process that made their folder."""
    if MADE_CACHE:
        shutil.rmtree(MADE_CACHE, ignore_errors=True)


@pytest.fixture
def options_of_training() -> dict[str, str | int]:
    """How the update is compiled outside the tests: in these, roundings are like users'."""
    from fql.devices import compiler_options

    return {**compiler_options(), 'xla_backend_optimization_level': 3}


@pytest.fixture(scope='session')
def opengl() -> None:
    """Skips the test where MuJoCo cannot render without a screen."""
    probe = subprocess.run(
        [sys.executable, '-c', 'import mujoco; mujoco.GLContext(8, 8).make_current()'],
        env={**os.environ, 'MUJOCO_GL': 'egl'},
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f'no EGL (apt-get install libegl1 libgl1): {probe.stderr.strip()[-200:]}')


@pytest.fixture
def run_python() -> Callable[..., 'subprocess.CompletedProcess[str]']:
    """run_python(code, *arguments): a fresh interpreter that can import the repository."""

    def run(
        code: str, *arguments: object, timeout: float = 180
    ) -> 'subprocess.CompletedProcess[str]':
        # Importing the loader here has set TensorFlow's variables, which a user's shell has not.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith('TF_')}
        return subprocess.run(
            [sys.executable, '-c', code, *map(str, arguments)],
            env={**inherited, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
