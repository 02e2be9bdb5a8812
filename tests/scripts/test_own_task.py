"""Training on the rewards stored in a dataset, without an environment."""

import json

import numpy as np
import pytest

SMALL = ('--batch-size', 8, '--frame-stack', 1, '--hidden-dims', 8, '--encoder', 'impala_debug')
SMALL = (*SMALL, '--flow-steps', 2, '--steps', 2, '--log-interval', 1)


@pytest.fixture
def own_data(fql, maze_npz, tmp_path, environment):
    """The name of a dataset with rewards and masks, and these arrays."""
    with np.load(maze_npz) as file:
        arrays = dict(file)
    rows = np.arange(len(arrays['actions']))
    labels = {'rewards': rows / 2, 'masks': rows % 5 != 0}
    np.savez(tmp_path / 'own.npz', **arrays, **labels)
    done = fql('prepare', tmp_path.name, '--source', tmp_path / 'own.npz')
    assert done.returncode == 0, done.stderr
    return tmp_path.name, labels


def test_trains_on_its_rewards(run_fql, assert_one_line, own_data, tmp_path):
    name, labels = own_data
    run, out = tmp_path / 'run', tmp_path / 'batch.npz'
    done = run_fql('train', '--task', 'own', '--dataset', name, '--run-dir', run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert 'not evaluated' in done.stdout
    assert json.loads((run / 'config.json').read_text())['config']['eval_interval'] == 0
    assert run_fql('train', '--resume', run, '--steps', 3).returncode == 0
    done = run_fql('inspect', 'batch', '--task', 'own', '--dataset', name, '--out', out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as batch:
        for array in ('rewards', 'masks'):
            expected = labels[array][batch['indices']].astype(np.float32)
            np.testing.assert_array_equal(batch[array], expected)
    assert_one_line(run_fql('evaluate', run), 'no environment')
    done = run_fql('export-encoder', run, '--out', tmp_path / 'encoder')
    assert done.returncode == 0, done.stderr
    report = run_fql('inspect', 'data', name).stdout
    assert 'train, own: success in 60 transitions of 10 trajectories' in report


def test_what_it_needs(fql, assert_one_line, prepared, own_data, tmp_path):
    arguments = ('train', '--task', 'own', '--run-dir', tmp_path / 'run', *SMALL)
    assert_one_line(fql(*arguments), 'own needs --dataset')
    assert_one_line(fql(*arguments, '--dataset', prepared), 'no rewards and masks', '--reward-key')
    assert_one_line(
        fql(*arguments, '--dataset', own_data[0], '--eval-interval', 1), 'eval-interval to 0'
    )
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('agent', ['qc', 'qc_fql', 'fql'])
def test_data_with_trajectories_shorter_than_the_horizon(
    fql, assert_one_line, own_data, tmp_path, agent
):
    """Of 30 rows: the critic would learn nothing, or from few."""
    train = ('train', '--task', 'own', '--dataset', own_data[0], '--agent', agent, *SMALL)
    run = tmp_path / 'run'
    done = fql(*train, '--horizon', 30, '--run-dir', run)
    assert_one_line(done, 'no trajectory has the 30 transitions', 'give a --horizon of at most 29')
    assert not run.exists()
    if agent == 'fql':
        done = fql(*train, '--horizon', 20, '--run-dir', run)
        assert done.returncode == 0, done.stderr
        # Of 10 trajectories, each with 10 of them; a chunk begins in 290 - 19 transitions.
        assert f'chunks: of 20 steps: {100 / 271:.2%} lie within' in done.stdout


def test_validation_data_with_trajectories_shorter_than_the_horizon(run_fql, tmp_path):
    """Their critic loss would be 0: there is none."""
    rng = np.random.default_rng(0)
    for name, length in (('d', 10), ('d-val', 3)):
        ends = np.arange(30) % length == length - 1
        labels = {'rewards': np.zeros(30), 'masks': np.ones(30), 'terminals': ends}
        states, actions = rng.normal(size=(30, 2)), rng.uniform(-1, 1, (30, 2))
        np.savez(tmp_path / f'{name}.npz', observations=states, actions=actions, **labels)
    data, run = ('--data-dir', tmp_path / 'data'), tmp_path / 'run'
    small = ('--batch-size', 4, '--hidden-dims', 8, '--flow-steps', 1, '--horizon', 5)
    small = (*small, '--steps', 1, '--log-interval', 1)
    for arguments in (
        ('prepare', '--source', tmp_path / 'd.npz', *data),
        ('train', '--task', 'own', '--dataset', 'd', *data, '--run-dir', run, *small),
    ):
        done = run_fql(*arguments)
        assert done.returncode == 0, done.stderr
    header, _ = (run / 'train.csv').read_text().splitlines()
    assert 'critic/loss' in header
    assert 'validation' not in header
