"""Signals before the first update: exit code 42, one line, and the same command goes on."""

import json
import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from fql.envs.tasks import QUICKSTART_TASK
from fql.stopping import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *('--task', QUICKSTART_TASK, '--agent', 'bc', '--batch-size', 8, '--hidden-dims', 8),
    *('--eval-interval', 0, '--log-interval', 1, '--save-interval', 2, '--steps', 4),
)


def is_caught(process, number):
    status = Path(f'/proc/{process.pid}/status').read_text()
    return bool(int(status.split('SigCgt:')[1].split()[0], 16) >> (number - 1) & 1)


def has_mapped(process, library):
    return library in Path(f'/proc/{process.pid}/maps').read_text()


def is_running(folder):
    try:
        return '\nState:\tZ' not in (folder / 'status').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


MOMENTS = {
    'at first': lambda process, run: is_caught(process, signal.SIGTERM),
    'importing': lambda process, run: has_mapped(process, 'jaxlib'),
    'data': lambda process, run: has_mapped(process, 'tensorflow'),
    'claimed': lambda process, run: (run / 'trainer.lock').exists(),
    'described': lambda process, run: (run / 'data.json').exists(),
    'saving': lambda process, run: (run / 'checkpoints').exists(),
}


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads /proc/PID')
@pytest.mark.parametrize(
    ('moment', 'number'),
    [
        *(
            pytest.param(
                moment,
                signal.SIGTERM,
                marks=pytest.mark.long if moment in ('claimed', 'described') else (),
            )
            for moment in MOMENTS
        ),
        ('at first', signal.SIGINT),
        ('data', signal.SIGINT),
    ],
)
@pytest.mark.usefixtures('prepared')
def test_a_signal_at_any_moment_of_the_start(fql, start_fql, tmp_path, moment, number):
    run = tmp_path / 'run'
    command = ('train', *SMALL, '--resume', 'auto', '--run-dir', run)
    process = start_fql(*command)
    deadline = time.monotonic() + 120
    while not MOMENTS[moment](process, run):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, (process.returncode, output, errors)
    assert 'Traceback' not in errors, errors
    assert 'stopped; ' in output + errors
    if moment == 'described':
        assert fql(*command).returncode == 0
        assert json.loads(fql('inspect', 'checkpoint', run).stdout)['step'] == 4


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads /proc/PID')
@pytest.mark.usefixtures('opengl', 'prepared')
@pytest.mark.long
def test_a_signal_while_environments_start(start_fql, tmp_path):
    process = start_fql('train', *SMALL, '--eval-interval', 2, '--run-dir', tmp_path / 'run')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    deadline = time.monotonic() + 120
    while len(children.read_text().split()) < 2:  # A worker, besides Python's resource tracker.
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
    workers = [Path('/proc', child) for child in children.read_text().split()]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)  # Until the workers have closed their output too.
    assert process.returncode == EXIT_CODE, errors
    assert 'Traceback' not in errors, errors
    assert not [worker for worker in workers if is_running(worker)]
    assert not (tmp_path / 'run').exists()


HUNG_UP = """
import pathlib, signal, sys, time
from fql.runs.interruption import Interrupted, Interruption
from fql.stopping import EXIT_CODE, leave_on_signals
leave_on_signals()
with Interruption() as interruption:
    print('ready', flush=True)
    try:
        while True:
            time.sleep(0.05)
            interruption.raise_if_noted()
    except Interrupted:
        time.sleep(0.5)  # For a second signal.
        print('stopped', flush=True)
        pathlib.Path(sys.argv[1]).write_text('saved')
        sys.exit(EXIT_CODE)
"""


@pytest.mark.parametrize('numbers', [(), (signal.SIGHUP,), (signal.SIGTERM, signal.SIGHUP)])
def test_a_closed_terminal_asks_for_a_stop_once(tmp_path, numbers):
    """Also if the shell tells it too, or systemd, which sends SIGTERM before."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(
            sys.executable,
            [sys.executable, '-c', HUNG_UP, str(tmp_path / 'state')],
            {**os.environ, 'PYTHONPATH': str(ROOT)},
        )
    text = b''
    while b'ready' not in text:
        text += os.read(terminal, 1000)
    for number in numbers:
        os.kill(process, number)
        time.sleep(0.1)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == EXIT_CODE
    assert (tmp_path / 'state').read_text() == 'saved'


def test_a_signal_that_nohup_ignores_stays_ignored(run_python):
    code = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import fql.stopping as s; '
    code += 's.leave_on_signals(); signal.raise_signal(signal.SIGHUP); print("on")'
    assert run_python(code).stdout == 'on\n'


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='reads /proc/PID')
@pytest.mark.parametrize(
    ('command', 'number', 'code', 'line'),
    [
        ('tasks', signal.SIGTERM, -signal.SIGTERM, ''),
        ('tasks', signal.SIGINT, 130, 'fql: interrupted'),
        ('sweep', signal.SIGHUP, EXIT_CODE, 'fql: stopped; run it again'),
    ],
)
def test_a_command_that_is_still_importing(start_fql, command, number, code, line):
    """Only a sweep can be continued."""
    process = start_fql(command)
    while not has_mapped(process, '_multiarray_umath'):
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip().startswith(line)
    assert len(errors.strip().splitlines()) == bool(line)
