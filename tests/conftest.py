"""Fixtures for all tests."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

# Nearly all of the suite's time is compilation. The processes of pytest-xdist, and those that tests
# start, inherit these variables: what one of them has compiled, none compiles again.
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
