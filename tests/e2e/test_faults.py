"""Faults of a run: two trainers, damage, numbers that are not finite, a job scheduler."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_folder import finished_steps
from fql.training.loop import MUST_BE_FINITE

SMALL = (
    *('--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8),
    *('--eval-interval', 0, '--log-interval', 5, '--save-interval', 10),
)
QUICK = (*SMALL, '--agent', 'bc')
"""The agent whose update compiles fastest, for faults that are the same for all."""

pytestmark = pytest.mark.usefixtures('prepared')


def test_a_second_trainer_refuses(fql, start_fql, wait_for_checkpoint, tmp_path):
    run = tmp_path / 'run'
    first = start_fql('train', *QUICK, '--steps', 100_000, '--run-dir', run)
    wait_for_checkpoint(first, run, 10)
    second = fql('train', '--resume', run)
    assert second.returncode == 1
    assert f'another trainer (process {first.pid}' in second.stderr


def test_resume_auto_starts_and_then_continues(fql, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'trainer.lock').touch()  # As left by a trainer that was killed just after its start.
    command = ('train', *QUICK, '--run-dir', run, '--resume', 'auto', '--steps')
    assert fql(*command, 10).returncode == 0
    digest = fql('inspect', 'checkpoint', run, '--step', 10).stdout
    assert fql(*command, 20).returncode == 0
    assert finished_steps(run / 'checkpoints') == [0, 10, 20]
    assert fql('inspect', 'checkpoint', run, '--step', 10).stdout == digest
    other = fql(*command, 20, '--seed', 1)
    assert other.returncode == 1
    assert 'seed: stored 0, asked 1' in other.stderr


def test_a_damaged_checkpoint_is_made_again(fql, tmp_path):
    whole, damaged = tmp_path / 'whole', tmp_path / 'damaged'
    assert fql('train', *QUICK, '--steps', 30, '--run-dir', whole).returncode == 0
    shutil.copytree(whole, damaged)
    files = [path for path in (damaged / 'checkpoints' / '30').rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])

    shown = fql('inspect', 'checkpoint', damaged, '--step', 30)
    assert shown.returncode == 1
    assert 'was altered' in shown.stderr
    resumed = fql('train', '--resume', damaged)
    assert resumed.returncode == 0, resumed.stderr
    assert 'checkpoint of update 30 is damaged' in resumed.stdout
    assert json.loads(fql('inspect', 'checkpoint', damaged).stdout) == json.loads(
        fql('inspect', 'checkpoint', whole).stdout
    )
    assert (damaged / 'train.csv').read_text() == (whole / 'train.csv').read_text()


def test_a_loss_that_is_not_finite_stops_the_run(run_fql, tmp_path):
    run = tmp_path / 'run'
    # Such settings make the loss overflow within some steps.
    done = run_fql(
        'train',
        *SMALL,
        '--flow-steps',
        1,
        '--steps',
        1000,
        '--run-dir',
        run,
        '--lr',
        10,
        '--alpha',
        1e9,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('fql: ')]
    assert 'not finite' in line
    (losses,) = (run / 'non-finite').glob('*.json')
    written = json.loads(losses.read_text())
    assert not np.isfinite([float(written[name]) for name in MUST_BE_FINITE]).all()
    step = int(losses.stem.removeprefix('step-'))
    assert max(finished_steps(run / 'checkpoints'), default=0) < step
    with np.load(losses.with_suffix('.npz')) as written:
        out = tmp_path / 'batch.npz'
        flags = ('--task', QUICKSTART_TASK, '--batch-size', 8, '--step', step, '--out', out)
        assert run_fql('inspect', 'batch', *flags).returncode == 0
        with np.load(out) as expected:
            np.testing.assert_array_equal(written['inputs'][:, 1], expected['next_observations'])
            np.testing.assert_array_equal(written['actions'], expected['actions'])


@pytest.mark.long
def test_a_full_disk(fql, start_fql, wait_for_checkpoint, small_disk):
    run = small_disk / 'run'
    settings = ('--save-interval', 100, '--log-interval', 0, '--steps', 100_000)
    process = start_fql('train', *QUICK, *settings, '--run-dir', run)
    wait_for_checkpoint(process, run, 100)
    # Unbuffered: closing a buffered file would raise the error of its last write again.
    with (small_disk / 'filler').open('wb', buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(2**16)):
            pass
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert 'Traceback' not in errors, errors
    (line,) = [line for line in errors.splitlines() if 'fql: ' in line]
    assert 'cannot save' in line
    # The checkpoints before it are sound, and the run continues once there is room.
    (small_disk / 'filler').unlink()
    latest = CheckpointReader(run / 'checkpoints').find(None)
    done = fql('train', '--resume', run, '--steps', latest + 100)
    assert done.returncode == 0, done.stderr
    assert f'updates {latest:,} to' in done.stdout


@pytest.mark.long
@pytest.mark.usefixtures('opengl')
def test_a_watcher_evaluates_what_the_trainer_saves(fql, start_fql, tmp_path):
    run = tmp_path / 'run'
    settings = ('--max-episode-steps', 3, '--eval-seed', 5)
    done = fql('train', *QUICK, *settings, '--steps', 20, '--run-dir', run)
    assert done.returncode == 0, done.stderr
    watcher = start_fql('evaluate', run, '--watch', '--episodes', 2)
    _, errors = watcher.communicate(timeout=200)
    assert watcher.returncode == 0, errors
    rows = (run / 'eval.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '10', '20']
    episodes = json.loads((run / 'evaluations' / '20.json').read_text())
    assert [episode['seed'] for episode in episodes] == [5, 6]
    # A trainer that leaves evaluation to the watcher does not change its results.
    assert fql('train', '--resume', run, '--steps', 30).returncode == 0
    assert (run / 'eval.csv').read_text().splitlines() == rows
    refused = fql('evaluate', run, '--watch', '--step', 10)
    assert refused.returncode == 1
