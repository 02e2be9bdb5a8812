"""`fql collect` as a user calls it: two files, what is kept, continued and refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.errors import DataError
from data_pipeline.store.frame_store import open_store
from data_pipeline.store.labels import task_labels
from fql.envs.tasks import find_task

ROOT = Path(__file__).resolve().parents[2]
NAME = 'puzzle-3x3-noisy-v0'
COLLECT = (sys.executable, '-m', 'scripts.main', 'collect', 'pointmaze-medium-v0')
PUZZLE = ('collect', 'puzzle-3x3-v0', '--dataset-type', 'noisy', '--episode-steps', 20)


def test_data_folder_of_an_unknown_user(monkeypatch, tmp_path):
    """As in a shell, the ~ of a user who does not exist stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('FQL_DATA_DIR', '~no-such-user/data')
    assert resolve_data_dir('') == tmp_path / '~no-such-user' / 'data'


def test_data_folder_with_a_line_break(monkeypatch):
    monkeypatch.setenv('FQL_DATA_DIR', '/tmp/a\nb')
    with pytest.raises(
        DataError, match=r"\$FQL_DATA_DIR: '/tmp/a\\nb' has characters that are not"
    ):
        resolve_data_dir('')


@pytest.mark.long
def test_from_nothing_to_labels(assert_one_line, fql):
    folder = resolve_data_dir('')
    train, val = (folder / 'collected' / f'{NAME}{suffix}.npz' for suffix in ('', '-val'))
    train.unlink(missing_ok=True)
    numbers = ('--episodes', 2, '--val-episodes', 1)
    done = fql(*PUZZLE, *numbers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'{train}: 42 rows in 2 trajectories',
        f'{val}: 21 rows in 1 trajectories',
        f'next: fql prepare {NAME} --source {train}',
    ]
    with np.load(train) as ours, np.load(val) as theirs:
        assert not np.array_equal(ours['qpos'][:21], theirs['qpos'])

    prepared = fql('prepare', NAME, '--source', train)
    assert prepared.returncode == 0, prepared.stderr
    store = open_store(folder / NAME)
    assert set(store.splits) == {'train', 'val'}
    task = find_task('puzzle-3x3-noisy-singletask-task1-v0')
    rewards, masks = task_labels(store, 'train', task.label_env_id)
    assert rewards.shape == masks.shape == (42,)
    assert rewards.min() >= -9

    assert_one_line(fql(*PUZZLE, *numbers), str(train), str(val), '--overwrite')
    before = train.read_bytes()
    val.unlink()
    done = fql(*PUZZLE, *numbers)
    assert done.stdout.splitlines()[0] == f'kept: {train}'
    assert val.exists()
    done = fql(*PUZZLE, '--episodes', 1, '--overwrite')
    assert done.returncode == 0, done.stderr
    with np.load(train) as arrays:
        assert len(arrays['terminals']) == 21
    assert train.read_bytes() != before


def test_pixels_of_another_size(fql, opengl, tmp_path):
    out = tmp_path / 'maze.npz'
    done = fql(
        *('collect', 'visual-pointmaze-medium-v0', '--frame-size', 16, '--episodes', 1),
        *('--episode-steps', 3, '--out', out, '--workers', 1),
        *('--env-kwargs', '{"maze_type": "large"}'),
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert arrays['observations'].shape == (4, 16, 16, 3)
        assert arrays['observations'].dtype == np.uint8
        assert (arrays['observations'].std(axis=(0, 1, 2)) > 1).all()


def interrupt(command, environment, is_time):
    """Ctrl-C once `is_time()`; returns when all that write to the program's pipes have ended."""
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not is_time() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_time()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert 'run the same command' in stderr
    assert 'Traceback' not in stderr


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(environment, tmp_path):
    out = tmp_path / 'maze.npz'
    parts = Path(f'{out}.parts')
    command = [*COLLECT, '--workers', '2', '--episode-steps', '100', '--out', out, '--episodes']
    interrupt([*command, '5000'], environment, lambda: len([*parts.glob('episode-*.npz')]) >= 3)
    kept = set(parts.glob('*'))
    assert 5 <= len(kept) < 5000
    time.sleep(0.5)
    assert set(parts.glob('*')) == kept, 'a worker goes on'
    assert not out.exists()
    subprocess.run([*command, '4'], env=environment, check=True, capture_output=True)
    with np.load(out) as arrays:
        assert arrays['terminals'].sum() == 4
    assert not parts.exists()


def test_ctrl_c_ends_what_the_workers_started(environment, tmp_path):
    """Importing glfw starts a process, which would complain of its broken pipe."""
    glfw, imported = tmp_path / 'modules' / 'glfw', tmp_path / 'imported'
    glfw.mkdir(parents=True)
    (glfw / '__init__.py').write_text(
        'import pathlib, subprocess\n'
        "process = subprocess.Popen(['sleep', '120'])\n"
        f'pathlib.Path({str(imported)!r}).touch()\n'
        'process.wait()\n'
    )
    interrupt(
        [*COLLECT, '--workers', '1', '--out', tmp_path / 'maze.npz'],
        {**environment, 'PYTHONPATH': f'{glfw.parent}:{environment["PYTHONPATH"]}'},
        imported.exists,
    )


@pytest.mark.parametrize(
    ('arguments', 'texts'),
    [
        (('visual-cube-singel-v0', '--dataset-type', 'navigate'), ("no data of type 'navigate'",)),
        (('antmaze-medium-v0',), ('no oracle', 'pointmaze-medium-v0')),
        (('cube-single-v0', '--frame-size', 32), ('frame_size', 'visual-cube-single-v0')),
        (('visual-cube-single-v0', '--frame-size', 0), ('frame-size must lie in [1, 4096]',)),
        (('cube-single-v0', '--env-kwargs', 'front'), ('env_kwargs is not JSON',)),
        (('cube-single-v0', '--env-kwargs', '[' * 10_000), ('env_kwargs is not JSON',)),
        (('cube-single-v0', '--env-kwargs', '[1]'), ('env_kwargs must be a JSON object',)),
        (('cube-single-v0', '--episodes', 0), ('episodes must lie in [1, 1e+06], not 0',)),
        (('cube-single-v0', '--val-episodes', -1), ('val-episodes must lie in',)),
        (('cube-single-v0', '--workers', -1), ('workers must lie in',)),
    ],
)
def test_what_cannot_be_collected_gives_one_line(arguments, texts, fql, assert_one_line):
    assert_one_line(fql('collect', *arguments), *texts)


def test_what_is_not_given_has_ogbenchs_number(fql, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        'scripts.collect.collect', lambda recipe, out, **rest: calls.append((recipe, out, rest))
    )
    fql('collect', 'visual-cube-triple-v0', '--val-episodes', 300, '--seed', 5, '--noise', 0)
    (train, out, settings), (val, val_out, val_settings) = calls
    assert (settings['episodes'], val_settings['episodes']) == (3000, 300)
    assert (train.episode_steps, train.noise, train.seed, train.split) == (1000, 0, 5, 'train')
    assert (val.episode_steps, val.noise, val.seed, val.split) == (1000, 0, 5, 'val')
    assert settings['workers'] == len(os.sched_getaffinity(0))
    assert out.name == 'visual-cube-triple-play-v0.npz'
    assert val_out.name == 'visual-cube-triple-play-v0-val.npz'
