"""A task of D4RL from a prepared dataset: rewards, score, and whether scores are comparable."""

import json

import h5py
import numpy as np
import pytest

from data_pipeline.environment import construct
from data_pipeline.online_loader import OnlineBatches
from data_pipeline.replay_store import open_replay
from fql.envs.tasks import ADROIT_TASKS, ANTMAZE_TASKS, find_task
from fql.training.comparability import D4RL_FILES

TASK = 'pen-human-v1'
SMALL = ('--batch-size', 8, '--hidden-dims', 8, '--flow-steps', 2, '--steps', 1)
SMALL = (*SMALL, '--log-interval', 1, '--eval-interval', 1, '--eval-episodes', 2)
SMALL = (*SMALL, '--eval-workers', 1)


def prepare(fql, folder, task):
    """Prepares a file in D4RL's layout, of trajectories of 20 rows."""
    rng = np.random.default_rng(0)
    env = construct(find_task(task).env_id)
    rows = np.arange(60)
    at_goal = (rows % 20 == 18) & task.startswith('antmaze')
    with h5py.File(folder / f'{task}.hdf5', 'w') as file:
        file['observations'] = rng.normal(size=(60, *env.observation_space.shape))
        file['actions'] = rng.uniform(-1, 1, (60, *env.action_space.shape)).astype(np.float32)
        file['rewards'] = at_goal.astype(np.float32)
        file['terminals'] = at_goal
        file['timeouts'] = rows % 20 == 19
    source, data = folder / f'{task}.hdf5', folder / 'data'
    done = fql('prepare', task, '--source', source, '--data-dir', data)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def _no_opengl(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'disable')


def test_rewards_of_antmaze_are_one_less(fql, tmp_path):
    prepare(fql, tmp_path, 'antmaze-umaze-v2')
    out = tmp_path / 'batch.npz'
    arguments = ('--task', 'antmaze-umaze-v2', '--data-dir', tmp_path / 'data', '--batch-size', 32)
    assert fql('inspect', 'batch', *arguments, '--out', out).returncode == 0
    with np.load(out) as batch:
        at_goal = batch['indices'] % 20 == 18
        np.testing.assert_array_equal(batch['rewards'], np.where(at_goal, 0, -1))
        np.testing.assert_array_equal(batch['masks'], ~at_goal)
    assert at_goal.any()


@pytest.mark.long
def test_so_they_are_online_and_in_data_made_of_a_replay(fql, tmp_path, monkeypatch):
    """The replay has the environment's own."""
    taken = []

    class Noted(OnlineBatches):
        def take(self):
            taken.append(super().take())
            return taken[-1]

    monkeypatch.setattr('fql.training.online.OnlineBatches', Noted)
    task, run, data = 'antmaze-umaze-v2', tmp_path / 'run', tmp_path / 'data'
    prepare(fql, tmp_path, task)
    online = ('--online-steps', 4, '--offline-ratio', 0.5, '--eval-interval', 0, '--run-dir', run)
    done = fql('train', '--task', task, '--data-dir', data, *SMALL, *online)
    assert done.returncode == 0, done.stderr
    rewards = open_replay(run / 'replay').splits['train'].labels['rewards']
    assert rewards[:4].tolist() == [0] * 4
    online = [batch['rewards'][batch['sources'] == 1] for _, batch in taken]
    assert set(np.concatenate(online)) == {-1}
    again, out = tmp_path / 'again', tmp_path / 'batch.npz'
    done = fql('prepare', task, '--source', run / 'replay', '--data-dir', again)
    assert done.returncode == 0, done.stderr
    batch = ('--task', task, '--data-dir', again, '--batch-size', 4, '--out', out)
    assert fql('inspect', 'batch', *batch).returncode == 0
    with np.load(out) as batch:
        assert batch['rewards'].tolist() == [-1] * 4


@pytest.fixture
def finished_run(fql, tmp_path):
    prepare(fql, tmp_path, TASK)
    run, data = tmp_path / 'run', tmp_path / 'data'
    done = fql('train', '--task', TASK, '--data-dir', data, '--run-dir', run, *SMALL)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


@pytest.mark.long
def test_the_score_is_recorded_and_reported_with_what_it_may_be_compared_with(
    fql, finished_run, tmp_path
):
    run, shown = finished_run
    header, row = (run / 'eval.csv').read_text().splitlines()
    values = dict(zip(header.split(','), map(float, row.split(',')), strict=True))
    expected = 100 * (values['evaluation/return'] - 96.262799) / (3076.8331017826877 - 96.262799)
    assert values['evaluation/score'] == pytest.approx(expected)
    assert f'score: 1: {expected:.1f}' in shown
    assert "this score is: not comparable with D4RL: the data are not of D4RL's own file" in shown
    flags = ('--episodes', 2, '--workers', 1)
    shown = fql('evaluate', run, *flags).stdout
    assert f'policy of update 1: score {expected:.1f}, success 0.0% over 2 episodes' in shown
    assert 'success judged' not in shown

    manifest = tmp_path / 'data' / TASK / 'manifest.json'
    values = json.loads(manifest.read_text())
    values['sources']['train']['sha256'] = D4RL_FILES[TASK]
    manifest.write_text(json.dumps(values))
    assert 'this score is comparable with D4RL\n' in fql('evaluate', run, *flags).stdout
    shown = fql('evaluate', run, *flags, '--max-episode-steps', 5).stdout
    assert 'not comparable with D4RL: episodes end after 5 steps\n' in shown

    done = fql('report', run, '--out', tmp_path / 'runs.html')
    _, header, row, *_ = done.stdout.splitlines()
    assert header.split()[2] == 'score'
    assert row.split()[3] == f'{expected:.1f}'


@pytest.mark.long
@pytest.mark.parametrize('task', [*ANTMAZE_TASKS, *ADROIT_TASKS])
def test_every_task_of_the_paper_trains_and_is_evaluated(fql, tmp_path, task):
    prepare(fql, tmp_path, task)
    run, data = tmp_path / 'run', tmp_path / 'data'
    done = fql('train', '--task', task, '--data-dir', data, '--run-dir', run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert 'score: 1: ' in done.stdout


def test_what_is_to_be_had_elsewhere_is_not_downloaded(fql, assert_one_line, tmp_path):
    done = fql('prepare', 'door-human-v1', '--data-dir', tmp_path)
    assert_one_line(done, 'name its .hdf5 file with --source')
    assert not list(tmp_path.rglob('*.npz*'))


def test_every_checksum_is_of_a_task_and_another():
    assert len(set(D4RL_FILES.values())) == len(D4RL_FILES) == 15
