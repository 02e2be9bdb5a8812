"""Damaged data stop a run with a one-line error; sound data are verified once."""

import json
import shutil
from pathlib import Path

import pytest

from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.interruption import Interrupted
from fql.runs.run_folder import finished_steps
from fql.stopping import EXIT_CODE

SMALL = (
    *('--batch-size', 8, '--hidden-dims', 8, '--encoder', 'impala_debug'),
    *('--log-interval', 1, '--save-interval', 2, '--steps', 4),
)
TRAIN = ('train', '--task', QUICKSTART_TASK, '--agent', 'bc', '--eval-interval', 0, *SMALL)


@pytest.fixture
def store(prepared, environment, tmp_path) -> Path:
    """A copy of the prepared dataset, in a separate data folder, with labels."""
    original = Path(environment['FQL_DATA_DIR']) / prepared
    return Path(shutil.copytree(original, tmp_path / 'data' / prepared))


def flip(path: Path) -> bytes:
    """Changes one bit of the array; returns the bytes from before."""
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 16]) + content[-2:])
    return content


def assert_stopped(done, path: Path, run: Path) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f'fql: {path} is not what was written')
    assert '--overwrite' in line
    assert 'Traceback' not in done.stderr
    assert finished_steps(run / 'checkpoints') == [0]  # No update has this number.


def test_a_run_on_damaged_frames(run_fql, store, tmp_path):
    path = store / 'train' / 'observations.npy'
    sound, run, data = flip(path), tmp_path / 'run', ('--data-dir', store.parent)
    assert_stopped(run_fql(*TRAIN, '--run-dir', run, *data), path, run)
    assert run_fql('train', '--resume', run, '--steps', 2, '--verify-data', 'never').returncode == 0
    path.write_bytes(sound)
    assert run_fql('train', '--resume', run, '--steps', 4).returncode == 0
    remembered = json.loads(store.with_name(f'.{store.name}.verified.json').read_text())
    assert {f'{path.parent.name}/{path.name}' for path in store.glob('*/*.npy')} == set(
        remembered['arrays']
    )


@pytest.mark.parametrize('name', ['actions', pytest.param('qvel', marks=pytest.mark.long)])
def test_a_pretraining_on_damaged_data(fql, store, tmp_path, name):
    path, run = store / 'train' / f'{name}.npy', tmp_path / 'run'
    flip(path)
    arguments = ('pretrain', '--dataset', store.name, '--data-dir', store.parent, '--run-dir', run)
    assert_stopped(fql(*arguments, '--frame-stack', 1, *SMALL), path, run)


def test_damage_is_reported_before_labels_are_computed(fql, assert_one_line, store):
    shutil.rmtree(store / 'labels', ignore_errors=True)
    flip(store / 'train' / 'qpos.npy')
    data = ('--data-dir', store.parent)
    assert_one_line(fql('inspect', 'data', store.name, '--verify', *data), 'qpos.npy')
    assert not (store / 'labels').exists()


@pytest.mark.parametrize(
    'command',
    [
        ('export-tfds', 'visual-pointmaze-quickstart-navigate-v0', '--out'),
        ('inspect', 'batch', '--task', QUICKSTART_TASK, '--batch-size', 8, '--out'),
    ],
)
def test_nothing_is_made_of_damaged_data(fql, assert_one_line, store, tmp_path, command):
    path, out = store / 'train' / 'observations.npy', tmp_path / 'out.npz'
    sound = flip(path)
    data = ('--data-dir', store.parent)
    assert_one_line(fql(*command, out, *data), f'{path} is not what was written')
    assert not out.exists()
    path.write_bytes(sound)
    done = fql(*command, out, *data)
    assert done.returncode == 0, done.stderr


def test_damaged_labels_are_reported(fql, assert_one_line, store):
    data = ('--data-dir', store.parent)
    assert fql('inspect', 'data', store.name, '--verify', *data).returncode == 0
    path = next(store.glob('labels/*/train/rewards.npy'))
    flip(path)
    assert_one_line(fql('inspect', 'data', store.name, '--verify', *data), str(path), 'delete')


@pytest.mark.long
def test_compiled_programs_are_kept_where_only_the_user_writes(
    fql_process, store, environment, tmp_path, monkeypatch
):
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
        monkeypatch.delitem(environment, name, raising=False)
    monkeypatch.setitem(environment, 'XDG_CACHE_HOME', str(tmp_path / 'cache'))
    arguments = ('inspect', 'batch', '--task', QUICKSTART_TASK, '--out', tmp_path / 'b.npz')
    done = fql_process(*arguments, '--batch-size', 8, '--data-dir', store.parent)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / 'cache' / 'fql' / 'compilation-cache').iterdir())
    assert not (store.parent / 'compilation-cache').exists()


@pytest.mark.usefixtures('prepared')
def test_a_stop_while_the_data_are_verified_loses_no_row(fql, run_fql, monkeypatch, tmp_path):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert run_fql(*TRAIN, '--run-dir', whole).returncode == 0

    def stop(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr('fql.training.loop.agree_on_verification', stop)
        assert fql(*TRAIN, '--run-dir', stopped).returncode == EXIT_CODE
    assert finished_steps(stopped / 'checkpoints') == [0, 2]
    assert run_fql('train', '--resume', stopped).returncode == 0
    assert (stopped / 'train.csv').read_bytes() == (whole / 'train.csv').read_bytes()
