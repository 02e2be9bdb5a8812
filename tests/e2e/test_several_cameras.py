"""The encoder of several cameras and a vector through the program: shared, pretrained, frozen."""

import json
import shutil

import numpy as np
import pytest

from fql.training.loaded_policy import load_policy

SETTINGS = (
    *('--task', 'own', '--eval-interval', 0, '--batch-size', 8, '--steps', 2, '--log-interval', 1),
    *('--agent', 'bc', '--hidden-dims', 8, '--encoder', 'impala_debug', '--frame-stack', 2),
)
TWINS = (*SETTINGS, '--dataset', 'twins', '--encoder.cameras', 'shared')


@pytest.fixture(scope='module', autouse=True)
def twins(run_fql, tmp_path_factory):
    """Datasets `twins`, of two cameras of one size, and `odd`, of two sizes; twins' shapes."""
    rng, rows = np.random.default_rng(0), 60
    folder = tmp_path_factory.mktemp('twins')
    keys = [word for name in ('left', 'right', 'pose') for word in ('--observation-key', name)]
    for name, width in (('twins', 8), ('twins-val', 8), ('odd', 9)):
        pose = rng.normal(size=(rows, 3))
        np.savez(
            folder / f'{name}.npz',
            left=rng.integers(0, 256, (rows, 8, 8, 3), np.uint8),
            right=rng.integers(0, 256, (rows, 8, width, 3), np.uint8),
            pose=pose,
            qpos=pose,
            actions=rng.uniform(-1, 1, (rows, 2)),
            terminals=np.arange(rows) % 20 == 19,
            rewards=np.zeros(rows),
            masks=np.ones(rows),
        )
    for name in ('twins', 'odd'):
        done = run_fql('prepare', name, '--source', folder / f'{name}.npz', *keys)
        assert done.returncode == 0, done.stderr
    return {'left': (8, 8, 3), 'pose': (3,), 'right': (8, 8, 3)}


def test_one_encoder_for_all_cameras(run_fql, assert_one_line, twins, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = run_fql('train', *TWINS, '--save-interval', 1, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert 'one for all cameras' in done.stdout
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / 'checkpoints' / '2')
    done = run_fql('train', '--resume', broken, '--encoder.cameras', 'separate')
    assert_one_line(done, "encoder.cameras: stored 'shared', asked 'separate'")
    assert run_fql('train', '--resume', broken).returncode == 0
    digests = [run_fql('inspect', 'checkpoint', path).stdout for path in (whole, broken)]
    assert json.loads(digests[0]) == json.loads(digests[1])
    shown = {
        name: np.full(shape, 3, np.uint8 if len(shape) == 3 else np.float32)
        for name, shape in twins.items()
    }
    assert load_policy(whole)(shown).shape == (2,)


def test_cameras_of_two_sizes_have_an_encoder_each(run_fql, assert_one_line, tmp_path):
    done = run_fql('train', *TWINS, '--dataset', 'odd', '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'several images of one shape', 'left 8x8x3 uint8', 'right 8x9x3 uint8')
