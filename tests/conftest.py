"""Fixtures for all tests."""

import os
import subprocess
import sys

import pytest


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
