"""Worker processes and what they leave behind."""

import os
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data_pipeline.workers import WorkerGroup


def start_a_process_and_die(connection: Connection) -> None:
    child = subprocess.Popen(['sleep', '1000'])
    connection.send(child.pid)
    connection.recv()
    os._exit(9)


def runs(number: int) -> bool:
    """Whether there is such a process, which is no zombie."""
    try:
        return Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('is_dead', [False, True])
def test_processes_that_a_worker_started_end_with_it(is_dead):
    with WorkerGroup() as group:
        group.start(start_a_process_and_die)
        child = group.connections[0].recv()
        assert runs(child)
        if is_dead:
            group.connections[0].send(None)
            assert group.exit_code(0, 60) == 9
            assert runs(child)
    deadline = time.monotonic() + 60
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)
