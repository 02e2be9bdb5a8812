"""The program as a user runs it, and a small dataset for it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fql.checkpointing import finished_steps
from scripts.main import run

ROOT = Path(__file__).resolve().parents[2]
ROWS, TRAJECTORY = 300, 30


@pytest.fixture(scope='session')
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment variables of the program: a data folder of the tests' own."""
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


@pytest.fixture
def start_fql(environment) -> Iterator[Callable[..., 'subprocess.Popen[str]']]:
    """start_fql('train', ..., XLA_FLAGS=...): starts the program; what still runs is killed."""
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
    """The same within this process, which saves the imports; sees what spawned processes print."""
    for name in ('FQL_DATA_DIR', 'PYTHONPATH'):
        monkeypatch.setenv(name, environment[name])

    def run_here(*arguments: object) -> 'subprocess.CompletedProcess[str]':
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run_here


@pytest.fixture
def assert_one_line() -> Callable[..., None]:
    """assert_one_line(done, word, ...): a fault that the user can mend, told in one line."""

    def check(done: 'subprocess.CompletedProcess[str]', *words: str) -> None:
        assert done.returncode == 1, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith('fql: ')
        for word in words:
            assert word in lines[0]

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
