"""Fixtures for all tests."""

import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS, TRAJECTORY = 300, 30

# Programs that a shell starts in the background ignore Ctrl-C, those of nohup a closed terminal, as
# the tests' processes would.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# As in an activated environment, so that hints name the program `fql`.
os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'

# Nearly all of the suite's time is compilation. Programs are compiled fast, with few optimisations.
# The processes of pytest-xdist and those that tests start inherit these variables and share one
# cache of compiled programs.
COMPILED_AT_ONCE = '--xla_backend_optimization_level=0'
if COMPILED_AT_ONCE not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {COMPILED_AT_ONCE}'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='fql-tests-compiled-')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
    MADE_CACHE = os.environ['JAX_COMPILATION_CACHE_DIR']
else:
    MADE_CACHE = ''


# Looking for garbage among all that the libraries make takes a tenth of the suite's time.
gc.disable()


REFERENCE_KEYS = {'step_0/batch/actions', 'batch/valid', 'added/rewards'}
"""Each is in one kind of file of published values: of updates, of chunks, of a replay."""


def pytest_configure() -> None:
    """Refuses a `$FQL_REFERENCE` of no known kind, which all tests would pass over.

    Raises:
        pytest.UsageError: it is such a file, or none.
    """
    path = os.environ.get('FQL_REFERENCE')
    if not path:
        return
    from data_pipeline.files import load_arrays

    try:
        is_known = not REFERENCE_KEYS.isdisjoint(load_arrays(Path(path)))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f'$FQL_REFERENCE: {path} cannot be read: {error}') from None
    if not is_known:
        keys = ', '.join(sorted(REFERENCE_KEYS))
        raise pytest.UsageError(f'$FQL_REFERENCE: {path} has none of the arrays {keys}')


def pytest_collection_finish() -> None:
    """What the imports made stays, and is not searched again."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """Removes the compiled programs, in the process that made their folder."""
    if MADE_CACHE:
        shutil.rmtree(MADE_CACHE, ignore_errors=True)


@pytest.fixture
def options_of_training() -> dict[str, str | int]:
    """Compiler options of updates outside the tests, so that roundings are like users'."""
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


@pytest.fixture(scope='session')
def run_python() -> Callable[..., 'subprocess.CompletedProcess[str]']:
    """run_python(code, *arguments): a fresh interpreter that can import the repository."""

    def run(
        code: str, *arguments: object, timeout: float = 180
    ) -> 'subprocess.CompletedProcess[str]':
        # Importing the loader here has set TensorFlow's variables; a user's shell lacks them.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith('TF_')}
        return subprocess.run(
            [sys.executable, '-c', code, *map(str, arguments)],
            env={**inherited, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope='session')
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment variables of the program, with a data folder for the tests."""
    return {
        **os.environ,
        'FQL_DATA_DIR': str(tmp_path_factory.mktemp('data')),
        'PYTHONPATH': str(ROOT),
        'COLUMNS': '120',
    }


@pytest.fixture(scope='session')
def fql_process(environment) -> Callable[..., 'subprocess.CompletedProcess[str]']:
    """fql_process('train', ...): runs the program, as a user does, to its end."""

    def run_process(*arguments: object) -> 'subprocess.CompletedProcess[str]':
        return subprocess.run(
            [sys.executable, '-m', 'scripts.main', *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run_process


@pytest.fixture(scope='session')
def run_fql(environment) -> Callable[..., 'subprocess.CompletedProcess[str]']:
    """run_fql('train', ...): the program within this process, which saves the imports."""
    from scripts.main import run

    def run_here(*arguments: object) -> 'subprocess.CompletedProcess[str]':
        output, errors = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            for name in ('FQL_DATA_DIR', 'PYTHONPATH', 'COLUMNS'):
                patch.setenv(name, environment[name])
            code = run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())

    return run_here


@pytest.fixture
def start_fql(environment) -> Iterator[Callable[..., 'subprocess.Popen[str]']]:
    """start_fql('train', ..., XLA_FLAGS=...): starts the program, and kills it at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **variables: str) -> 'subprocess.Popen[str]':
        started.append(
            subprocess.Popen(
                [sys.executable, '-m', 'scripts.main', *map(str, arguments)],
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_for_checkpoint() -> Callable[['subprocess.Popen[str]', Path, int], None]:
    """wait_for_checkpoint(process, run, step): until a run has a checkpoint of `step` or later."""

    from fql.runs.run_folder import finished_steps

    def wait(process: 'subprocess.Popen[str]', run: Path, step: int) -> None:
        deadline = time.monotonic() + 240
        while max(finished_steps(run / 'checkpoints'), default=0) < step:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 24 MB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f'no mount: {error}')
    if done.returncode != 0:
        pytest.skip(f'a small file system cannot be mounted: {done.stderr.strip()}')
    yield disk
    subprocess.run(['umount', '-l', str(disk)], check=True)


@pytest.fixture
def fql(environment, monkeypatch, capfd) -> Callable[..., 'subprocess.CompletedProcess[str]']:
    """As `run_fql`, for one test; sees what spawned processes print, too."""
    for name in ('FQL_DATA_DIR', 'PYTHONPATH'):
        monkeypatch.setenv(name, environment[name])

    from scripts.main import run

    def run_here(*arguments: object) -> 'subprocess.CompletedProcess[str]':
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run_here


@pytest.fixture
def assert_one_line() -> Callable[..., None]:
    """assert_one_line(done, text, ...): a fault that the user can resolve, reported in one line."""

    def check(done: 'subprocess.CompletedProcess[str]', *texts: str) -> None:
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith('fql: ')
        for text in texts:
            assert text in lines[0]

    return check


@pytest.fixture(scope='session')
def maze_npz(tmp_path_factory) -> Path:
    """A file in OGBench's format with the shapes of the quickstart's dataset; random contents."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp('source') / 'maze.npz'
    np.savez_compressed(
        path,
        observations=rng.integers(0, 256, (ROWS, 32, 32, 3), np.uint8),
        actions=rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        terminals=np.arange(ROWS) % TRAJECTORY == TRAJECTORY - 1,
        qpos=rng.uniform(0, 20, (ROWS, 2)).astype(np.float32),
        qvel=np.zeros((ROWS, 2), np.float32),
    )
    return path


@pytest.fixture(scope='session')
def prepared(fql_process, maze_npz) -> str:
    """The name of a prepared dataset that fits the quickstart's task."""
    name = 'visual-pointmaze-quickstart-navigate-v0'
    done = fql_process('prepare', name, '--source', maze_npz)
    assert done.returncode == 0, done.stderr
    return name
