"""The online phase through the program: killed and resumed, all agents, from pixels and states."""

import json

import numpy as np
import pytest

from data_pipeline.replay import open_replay
from fql.envs.tasks import QUICKSTART_TASK
from fql.training.checkpoints import finished_steps

SMALL = (
    *('--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8, '--frame-stack', 2),
    *('--eval-interval', 0, '--log-interval', 7, '--save-interval', 10, '--max-episode-steps', 9),
)
ONLINE = ('--steps', 5, '--online-steps', 60, '--online-workers', 2, '--online-warmup', 4)

pytestmark = pytest.mark.usefixtures('prepared', 'opengl')


def digest(fql, run):
    done = fql('inspect', 'checkpoint', run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def replay_of(run):
    return {
        (name, key): np.array(array)
        for name, split in open_replay(run / 'replay').splits.items()
        for key, array in split.arrays.items()
    }


def assert_same_run(fql, run, other):
    assert digest(fql, run) == digest(fql, other)
    found, expected = replay_of(run), replay_of(other)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))
    for name in ('train.csv', 'online.csv'):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


def test_a_killed_run_ends_as_one_that_was_not(
    fql, fql_process, start_fql, wait_for_checkpoint, tmp_path
):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    done = fql_process('train', *SMALL, *ONLINE, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    for step in (25, 45):
        process = start_fql('train', *SMALL, *ONLINE, '--run-dir', killed, '--resume', 'auto')
        wait_for_checkpoint(process, killed, step)
        process.kill()
        process.communicate()
    assert max(finished_steps(killed / 'checkpoints')) < 61
    done = fql_process('train', '--resume', killed)
    assert done.returncode == 0, done.stderr
    assert_same_run(fql, killed, whole)
    assert digest(fql, whole)['step'] == 5 + 60 - 4
