"""A run that is killed, stopped and resumed, against an uninterrupted one."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.run_folder import finished_steps
from fql.stopping import EXIT_CODE

STEPS = 60
SETTINGS = (
    *('--task', QUICKSTART_TASK, '--steps', STEPS, '--batch-size', 8, '--hidden-dims', 8),
    *('--flow-steps', 1, '--encoder', 'impala_debug', '--eval-workers', 1),
    *('--log-interval', 7, '--save-interval', 10, '--eval-interval', 30),
    *('--eval-episodes', 2, '--max-episode-steps', 4, '--shift-probability', 0.5),
)


def checkpoint(fql, folder):
    done = fql('inspect', 'checkpoint', folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.usefixtures('opengl', 'prepared')
def test_killed_and_stopped_runs_end_in_the_same_state(
    fql, start_fql, wait_for_checkpoint, tmp_path
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = fql('train', *SETTINGS, '--run-dir', whole)
    assert done.returncode == 0, done.stderr

    process = start_fql('train', *SETTINGS, '--run-dir', broken)
    wait_for_checkpoint(process, broken, 10)
    process.kill()
    process.communicate()
    assert max(finished_steps(broken / 'checkpoints')) < STEPS

    process = start_fql('train', '--resume', broken)
    wait_for_checkpoint(process, broken, 30)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == EXIT_CODE, errors
    assert f'fql train --resume {broken}' in output

    done = fql('train', '--resume', broken)
    assert done.returncode == 0, done.stderr
    assert checkpoint(fql, broken) == checkpoint(fql, whole)
    assert checkpoint(fql, whole)['step'] == STEPS
    for name in ('train.csv', 'eval.csv'):
        assert (broken / name).read_text() == (whole / name).read_text(), name
    steps = [line.split(',')[0] for line in (whole / 'eval.csv').read_text().splitlines()]
    assert steps == ['step', '30', '60']
    for name in ('learning_curve.png', 'videos/60.gif', 'evaluations/60.json'):
        assert (broken / name).exists(), name

    # The comparison can fail: another step is another state.
    before = fql('inspect', 'checkpoint', whole, '--step', STEPS - 10)
    assert json.loads(before.stdout)['sha256'] != checkpoint(fql, whole)['sha256']

    more = ('--candidates', 3, '--video', tmp_path / 'v.gif')
    done = fql('evaluate', whole, '--episodes', 2, '--workers', 1, '--step', STEPS, *more)
    assert done.returncode == 0, done.stderr
    assert f'one_step policy, best of 3 of update {STEPS}: success' in done.stdout
    assert (tmp_path / 'v.gif').exists()


def workers_of(process):
    """The process ids of a program's environments."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [
        int(pid) for pid in children if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.usefixtures('opengl', 'prepared')
@pytest.mark.long
def test_a_worker_that_hangs_does_not_keep_a_run_from_stopping(
    start_fql, wait_for_checkpoint, tmp_path
):
    run = tmp_path / 'run'
    # Evaluated after every checkpoint, and so long that the stop comes during an evaluation.
    settings = (*SETTINGS, '--steps', 100_000, '--save-interval', 4, '--eval-interval', 5)
    settings = (*settings, '--eval-episodes', 1000, '--max-episode-steps', 0, '--eval-workers', 1)
    process = start_fql('train', *settings, '--run-dir', run)
    wait_for_checkpoint(process, run, 4)
    time.sleep(1)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)  # A step may take 300 s.
    assert process.returncode == EXIT_CODE, errors
    assert not Path(f'/proc/{worker}').exists()
    assert max(finished_steps(run / 'checkpoints')) == 5
