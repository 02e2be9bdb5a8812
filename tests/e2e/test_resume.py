"""A run that is killed and stopped and resumed against one that is not."""

import json
import signal

import pytest

from fql.envs.tasks import QUICKSTART_TASK
from fql.training.checkpoints import finished_steps
from fql.training.interruption import EXIT_CODE

STEPS = 60
SETTINGS = (
    *('--task', QUICKSTART_TASK, '--steps', STEPS, '--batch-size', 8, '--hidden-dims', 8),
    *('--flow-steps', 1),
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
    fql, fql_process, start_fql, wait_for_checkpoint, tmp_path
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = fql_process('train', *SETTINGS, '--run-dir', whole)
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

    done = fql_process('train', '--resume', broken)
    assert done.returncode == 0, done.stderr
    assert checkpoint(fql, broken) == checkpoint(fql, whole)
    assert checkpoint(fql, whole)['step'] == STEPS
    for name in ('train.csv', 'eval.csv'):
        assert (broken / name).read_text() == (whole / name).read_text(), name
    steps = [line.split(',')[0] for line in (whole / 'eval.csv').read_text().splitlines()]
    assert steps == ['step', '30', '60']
    for name in ('learning_curve.png', 'videos/60.gif', 'evaluations/60.json'):
        assert (broken / name).exists(), name

    # The comparison can fail: another seed is another state.
    other = tmp_path / 'other'
    settings = (*SETTINGS, '--eval-interval', 0, '--run-dir', other, '--seed', 1)
    assert fql('train', *settings).returncode == 0
    assert checkpoint(fql, other)['sha256'] != checkpoint(fql, whole)['sha256']

    more = ('--candidates', 3, '--video', tmp_path / 'v.gif')
    done = fql('evaluate', whole, '--episodes', 2, '--step', STEPS, *more)
    assert done.returncode == 0, done.stderr
    assert f'one_step policy, best of 3 of step {STEPS}: success' in done.stdout
    assert (tmp_path / 'v.gif').exists()
