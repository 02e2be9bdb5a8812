"""Every agent through the program: train, interrupt, resume, evaluate."""

import json

import pytest

from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import QUICKSTART_TASK
from scripts import main

SMALL = (
    *('--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8, '--frame-stack', 2),
    *('--eval-interval', 0, '--log-interval', 10, '--save-interval', 10),
)
pytestmark = pytest.mark.usefixtures('prepared')


def digest(fql, run):
    done = fql('inspect', 'checkpoint', run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(fql, tmp_path, name):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = fql('train', '--agent', name, *SMALL, '--steps', 30, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert f'agent: {name}' in done.stdout
    assert fql('train', '--agent', name, *SMALL, '--steps', 20, '--run-dir', broken).returncode == 0
    done = fql('train', '--resume', broken, '--steps', 30)
    assert done.returncode == 0, done.stderr
    assert digest(fql, whole) == digest(fql, broken)
    assert (whole / 'train.csv').read_bytes() == (broken / 'train.csv').read_bytes()
    assert (whole / 'learning_curve.png').stat().st_size > 10_000
    short = ('--episodes', 1, '--max-episode-steps', 7, '--workers', 1)
    done = fql('evaluate', whole, *short)
    assert done.returncode == 0, done.stderr
    assert 'of update 30' in done.stdout


@pytest.mark.long
@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_a_killed_run_ends_as_one_that_was_not(fql, start_fql, wait_for_checkpoint, tmp_path, name):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    command = ('train', '--agent', name, *SMALL, '--steps', 400)
    assert fql(*command, '--run-dir', whole).returncode == 0
    process = start_fql(*command, '--run-dir', killed)
    wait_for_checkpoint(process, killed, 20)
    process.kill()
    process.communicate()
    done = fql('train', '--resume', killed)
    assert done.returncode == 0, done.stderr
    assert digest(fql, whole) == digest(fql, killed)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--flow-steps', 3), '--flow-steps is a setting of fql, ifql, '),
        (('--no-normalize-q-loss',), '--no-normalize-q-loss is a setting of fql, fbrac, not of'),
    ],
)
def test_another_agents_flag_is_refused_by_name(capsys, flags, message):
    with pytest.raises(SystemExit, match='2'):
        main.run(['train', '--agent', 'iql', *map(str, flags)])
    error = capsys.readouterr().err
    assert message in error
    assert 'not of iql' in error


def test_help_shows_the_settings_of_one_agent(fql_process):
    done = fql_process('train', '--agent', 'iql', '--help')
    assert done.returncode == 0
    assert '--expectile' in done.stdout
    assert '--flow-steps' not in done.stdout


def test_a_resumed_run_keeps_its_agent(fql, assert_one_line, tmp_path):
    run = tmp_path / 'run'
    assert fql('train', '--agent', 'bc', *SMALL, '--steps', 1, '--run-dir', run).returncode == 0
    done = fql('train', '--agent', 'iql', '--resume', run)
    assert_one_line(done, 'trains agent bc, not iql')
    done = fql('evaluate', run, '--policy', 'one_step', '--episodes', 1)
    assert_one_line(done, 'agent bc has no policy one_step; it has flow')
    done = fql('evaluate', run, '--candidates', 2, '--episodes', 1)
    assert_one_line(done, 'agent bc does not choose among candidates')
