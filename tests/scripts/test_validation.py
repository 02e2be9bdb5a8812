"""Validation batches: those of the val split, without the augmentation of training."""

import csv
import shutil

import pytest

from fql.envs.tasks import QUICKSTART_TASK

DATASET = 'visual-pointmaze-validated-v0'
TINY = (
    *('--steps', 1, '--log-interval', 1, '--batch-size', 8, '--hidden-dims', 8, '--frame-stack', 1),
    *('--lr', 1e-12, '--encoder', 'impala_debug', '--dataset', DATASET),
)
TRAIN = ('train', '--task', QUICKSTART_TASK, '--agent', 'bc', '--eval-interval', 0)


@pytest.fixture(scope='module')
def validated(run_fql, maze_npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp('validated')
    for name in ('m.npz', 'm-val.npz'):
        shutil.copy(maze_npz, folder / name)
    done = run_fql('prepare', DATASET, '--source', folder / 'm.npz')
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures('validated')
@pytest.mark.parametrize(
    'arguments',
    [
        pytest.param(TRAIN, id='train'),
        pytest.param(('pretrain', '--horizon', 2), id='pretrain', marks=pytest.mark.long),
    ],
)
def test_validation_batches_are_not_augmented(run_fql, tmp_path, arguments):
    """Updates are tiny, so that two runs differ only in the images that they see."""
    rows = {}
    for name, brightness in (('plain', 0), ('changed', 0.5)):
        run = tmp_path / name
        done = run_fql(*arguments, *TINY, '--brightness', brightness, '--run-dir', run)
        assert done.returncode == 0, done.stderr
        with (run / 'train.csv').open() as file:
            (row,) = csv.DictReader(file)
        rows[name] = {key: float(value) for key, value in row.items()}
    plain, changed = rows['plain'], rows['changed']
    assert changed['loss'] != pytest.approx(plain['loss'], rel=1e-4)
    assert changed['validation/loss'] == pytest.approx(plain['validation/loss'], rel=1e-6)


@pytest.mark.usefixtures('validated')
def test_a_resumed_run_continues_with_the_next_validation_batch(run_fql, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for arguments in (
        (*TRAIN, *TINY, '--steps', 4, '--run-dir', whole),
        (*TRAIN, *TINY, '--steps', 2, '--run-dir', broken),
        ('train', '--resume', broken, '--steps', 4),
    ):
        done = run_fql(*arguments)
        assert done.returncode == 0, done.stderr
    assert (broken / 'train.csv').read_bytes() == (whole / 'train.csv').read_bytes()
