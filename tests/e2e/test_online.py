"""The online phase through the program: killed and resumed, all agents, from pixels and states."""

import csv
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from data_pipeline.replay_store import open_replay
from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.metrics_log import read_csv
from fql.runs.run_folder import finished_steps

SMALL = (
    *('--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8, '--frame-stack', 2),
    *('--eval-interval', 0, '--log-interval', 7, '--save-interval', 10, '--max-episode-steps', 9),
)
OF_FQL = (*SMALL, '--flow-steps', 1)
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


def assert_same_run(fql, run, other, logs=('train.csv', 'online.csv')):
    assert digest(fql, run) == digest(fql, other)
    found, expected = replay_of(run), replay_of(other)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))
    for name in logs:
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.long
def test_a_killed_run_ends_as_one_that_was_not(
    fql, run_fql, start_fql, wait_for_checkpoint, tmp_path
):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    done = run_fql('train', *OF_FQL, *ONLINE, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    for step in (25, 45):
        process = start_fql('train', *OF_FQL, *ONLINE, '--run-dir', killed, '--resume', 'auto')
        wait_for_checkpoint(process, killed, step)
        process.kill()
        process.communicate()
    assert max(finished_steps(killed / 'checkpoints')) < 61
    done = run_fql('train', '--resume', killed)
    assert done.returncode == 0, done.stderr
    assert_same_run(fql, killed, whole)
    assert digest(fql, whole)['step'] == 5 + 60 - 4


@pytest.mark.long
def test_a_stop_before_the_first_update_loses_no_step(
    fql, assert_one_line, run_fql, start_fql, tmp_path
):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    settings = (*OF_FQL, '--steps', 5, '--online-steps', 820, '--online-warmup', 800)
    assert run_fql('train', *settings, '--run-dir', whole).returncode == 0
    process = start_fql('train', *settings, '--run-dir', stopped)
    while len(read_csv(stopped / 'online.csv')) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, 'stopped; update 5 is saved' in out) == (42, True)
    record = stopped / 'replay' / 'warmup.json'
    made = json.loads(record.read_text())['env_steps']
    assert 45 <= made < 800

    intact = record.read_text()
    record.write_text(intact[:-9])
    assert_one_line(fql('train', '--resume', stopped), 'warmup.json is damaged')
    record.write_text(intact)
    kept = stopped / 'replay' / 'kept'
    kept.touch()  # A phase that begins anew has a new folder.
    done = run_fql('train', '--resume', stopped)
    assert done.returncode == 0, done.stderr
    assert kept.exists()
    assert_same_run(fql, stopped, whole)


def test_validation_has_the_loss_of_its_phase(fql, maze_npz, tmp_path):
    for name in ('maze', 'maze-val'):
        shutil.copy(maze_npz, tmp_path / f'{name}.npz')
    done = fql('prepare', 'with-val', '--source', tmp_path / 'maze.npz')
    assert done.returncode == 0, done.stderr
    data = ('--dataset', 'with-val', '--alpha', 1, '--online.alpha', 7)
    phases = ('--steps', 2, '--online-steps', 2, '--log-interval', 1)
    done = fql('train', *OF_FQL, *data, *phases, '--run-dir', tmp_path / 'run')
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / 'run' / 'train.csv').open()))
    assert [row['step'] for row in rows] == ['1', '2', '3', '4']
    for row, alpha in zip(rows, (1, 1, 7, 7), strict=True):
        for prefix in ('', 'validation/'):
            loss, flow, distill, q = (
                float(row[f'{prefix}actor/{part}'])
                for part in ('loss', 'bc_flow_loss', 'distill_loss', 'q_loss')
            )
            assert loss == pytest.approx(flow + alpha * distill + q, rel=1e-4)


@pytest.mark.long
def test_an_online_phase_from_another_run(fql, assert_one_line, tmp_path):
    """It is the same as after the offline updates in one run, and the other run is unchanged."""
    both, offline, online = tmp_path / 'both', tmp_path / 'offline', tmp_path / 'online'
    phase = ('--online-steps', 30, '--updates-per-env-step', 2, '--offline-ratio', 0.5)
    done = fql('train', *OF_FQL, '--steps', 20, *phase, '--run-dir', both)
    assert done.returncode == 0, done.stderr
    assert fql('train', *OF_FQL, '--steps', 25, '--run-dir', offline).returncode == 0
    before = {path: path.read_bytes() for path in sorted(offline.rglob('*')) if path.is_file()}
    command = ('train', '--from', offline, '--step', 20, *phase, '--run-dir', online)
    done = fql(*command)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert digest(fql, online) == digest(fql, both)
    assert digest(fql, online)['step'] == 20 + 60
    assert (online / 'online.csv').read_bytes() == (both / 'online.csv').read_bytes()

    done = fql('train', '--from', offline, '--steps', 30, *phase)
    assert_one_line(done, 'choose a checkpoint with --step')
    assert_one_line(fql('train', '--from', offline), '--from needs --online-steps')
    done = fql('train', '--from', offline, '--agent', 'iql', *phase)
    assert_one_line(done, f'{offline} trains agent fql, not iql')
    assert_one_line(fql('train', '--from', offline, '--resume', online), 'give only one of them')

    # The replay can be read like other data.
    done = fql('inspect', 'data', online / 'replay')
    assert done.returncode == 0, done.stderr
    assert '30 transitions in 4 trajectories of 3 to 9' in done.stdout
    done = fql('inspect', 'data', online / 'replay', '--verify')
    assert 'every array is as it was written' in done.stdout
    done = fql('prepare', 'replayed', '--source', online / 'replay')
    assert done.returncode == 0, done.stderr
    assert '30 transitions in 4 trajectories' in done.stdout
    done = fql('export-tfds', online / 'replay', '--out', tmp_path / 'tfds')
    assert done.returncode == 0, done.stderr
    own = ('--task', 'own', '--dataset', 'replayed', '--batch-size', 8, '--hidden-dims', 8)
    assert fql('train', *own, '--steps', 2, '--run-dir', tmp_path / 'own').returncode == 0

    # The replay must exist and be complete.
    path = online / 'replay' / 'train' / 'rewards.npy'
    data = bytearray(path.read_bytes())
    data[140] ^= 1
    path.write_bytes(data)
    done = fql('train', '--resume', online, '--online-steps', 40)
    assert_one_line(done, 'rewards.npy', 'not what was written')
    path.unlink()
    done = fql('train', '--resume', online, '--online-steps', 40)
    assert_one_line(done, 'rewards.npy', 'cannot be read')
    done = fql('train', '--resume', online, '--steps', 30)
    assert_one_line(done, '--steps cannot be changed to 30')


@pytest.mark.long
def test_a_requeued_run_needs_its_source_no_more(fql, assert_one_line, tmp_path):
    """It continues with its stored settings, and must still be the one that the command names."""
    source, run = tmp_path / 'source', tmp_path / 'run'
    settings = (*OF_FQL, '--steps', 2, '--run-dir', source)
    assert fql('train', *settings).returncode == 0
    command = ('train', '--from', source, '--run-dir', run, '--resume', 'auto', '--online-steps')
    done = fql(*command, 4)
    assert done.returncode == 0, done.stderr
    source.rename(tmp_path / 'moved')
    done = fql(*command, 8)
    assert done.returncode == 0, done.stderr
    assert digest(fql, run)['step'] == 2 + 8
    assert_one_line(fql(*command, 8, '--step', 3), 'started from update 2: --step cannot be')
    assert_one_line(fql(*command, 8, '--steps', 3), '--steps cannot be set with --from')
    assert_one_line(fql(*command, 8, '--batch-size', 9), 'batch_size: stored 8, asked 9')
    assert_one_line(fql(*command, 8, '--from', tmp_path / 'moved'), 'online.from: stored')
    assert_one_line(fql(*command, 8, '--agent', 'iql'), f'{run} trains agent fql, not iql')


ONLINE_AGENTS = {
    'fql': ('--exploration', 'ucb', '--num-critics', 3, '--online.alpha', 0.1),
    'iql': (),
    'rebrac': ('--online.encoder-lr-multiplier', 0.1),
    'ifql': (),
    'sac': ('--steps', 0),
    'qc_fql': (),
    'qc': (),
}


def train_both(fql, settings, steps, whole, broken):
    """Trains a run at once, and another in two parts; both end in the same state."""
    for arguments in (
        (*settings, '--online-steps', steps, '--run-dir', whole),
        (*settings, '--online-steps', steps - 10, '--run-dir', broken),
        ('--resume', broken, '--online-steps', steps),
    ):
        done = fql('train', *arguments)
        assert done.returncode == 0, done.stderr
    assert digest(fql, whole) == digest(fql, broken)


@pytest.mark.long
@pytest.mark.parametrize('name', ONLINE_AGENTS)
def test_every_agent_goes_online_and_on(fql, tmp_path, name):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    settings = ('--agent', name, *SMALL, '--steps', 5, '--online-workers', 2, *ONLINE_AGENTS[name])
    train_both(fql, settings, 24, whole, broken)
    assert replay_of(whole).keys() == replay_of(broken).keys()
    for key, array in replay_of(whole).items():
        np.testing.assert_array_equal(array, replay_of(broken)[key])
    lengths = [int(float(row['length'])) for row in rows_of(whole / 'online.csv')]
    assert lengths == [9, 9]


@pytest.mark.long
def test_a_frozen_encoders_latents_grow_with_the_replay(fql, tmp_path):
    """Compared with encoding in every update: the same rows, and actions equal up to rounding."""
    pretrained = tmp_path / 'encoder'
    done = fql('train', *OF_FQL, '--steps', 3, '--run-dir', tmp_path / 'first')
    assert done.returncode == 0, done.stderr
    done = fql('export-encoder', tmp_path / 'first', '--out', pretrained)
    assert done.returncode == 0, done.stderr
    settings = (*OF_FQL, '--steps', 5, '--shift-probability', 0, '--online-workers', 2)
    settings += ('--encoder.from', pretrained, '--encoder.mode', 'frozen', '--offline-ratio', 0.25)
    cached, broken, off = (tmp_path / name for name in ('cached', 'broken', 'off'))
    train_both(fql, settings, 20, cached, broken)
    settings += ('--latent-cache', 'off')
    done = fql('train', *settings, '--online-steps', 20, '--run-dir', off)
    assert done.returncode == 0, done.stderr
    for key, array in replay_of(off).items():
        tolerance = 2 if array.dtype == np.uint8 else 1e-3
        np.testing.assert_allclose(replay_of(cached)[key], array, atol=tolerance)
    latents = np.load(cached / 'replay' / 'train' / 'latents.npy')
    assert (latents != 0).any(axis=1).all()


@pytest.mark.long
def test_a_disk_that_is_full_in_the_middle_of_the_phase(
    fql, run_fql, assert_one_line, small_disk, tmp_path
):
    settings = ('--batch-size', 8, '--hidden-dims', 8, '--eval-interval', 0, '--log-interval', 0)
    settings += ('--task', QUICKSTART_TASK, '--steps', 5, '--online-workers', 2)
    settings += ('--save-interval', 1_000, '--max-episode-steps', 9)
    whole, stopped, ballast = tmp_path / 'whole', small_disk / 'stopped', small_disk / 'ballast'
    done = run_fql('train', *settings, '--online-steps', 160, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    done = fql('train', *settings, '--online-steps', 20, '--run-dir', stopped)
    assert done.returncode == 0, done.stderr
    disk = os.statvfs(small_disk)
    with ballast.open('wb') as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - 200_000)
    done = fql('train', '--resume', stopped, '--online-steps', 160)
    assert_one_line(done, 'the replay cannot be written: No space left on device')
    assert finished_steps(stopped / 'checkpoints')[-1] == 25
    ballast.unlink()
    done = fql('train', '--resume', stopped)
    assert done.returncode == 0, done.stderr
    assert_same_run(fql, stopped, whole, logs=['online.csv'])


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--steps', 0), 'must be at least 1, unless --online-steps is given'),
        (('--online-steps', 5, '--online-workers', 2), 'multiples of online-workers'),
        (('--online-steps', 5, '--online-warmup', 5), 'leaves no update'),
        (('--online-steps', 5, '--offline-ratio', 1.5), 'offline-ratio must be uniform or lie in'),
        (('--agent', 'iql', '--online-steps', 5, '--exploration', 'ucb'), 'is of agent fql'),
        (('--agent', 'sac', '--online-steps', 5, '--online.alpha', 1), 'sac has no alpha'),
        (('--step', 5), '--step needs --from'),
        *(
            ((flag, value), f'{flag[2:]} is a setting of the online phase: give --online-steps too')
            for flag, value in [
                ('--online.alpha', 3),
                ('--online-warmup', 3),
                ('--offline-ratio', 0.5),
                ('--online-workers', 2),
            ]
        ),
    ],
)
def test_settings_without_sense(fql, assert_one_line, tmp_path, flags, message):
    # Without data, so that nothing is trained should the settings be taken.
    done = fql('train', '--task', QUICKSTART_TASK, '--data-dir', tmp_path, *flags)
    assert_one_line(done, message)


def test_presets_of_the_online_phase_are_not_taken_for_flags(fql, assert_one_line, tmp_path):
    """An alpha and a ratio that the task's preset has, in runs without an online phase."""
    for task, agent in (('pen-cloned-v1', 'fql'), ('antmaze-umaze-v2', 'sac')):
        done = fql('train', '--task', task, '--agent', agent, '--data-dir', tmp_path)
        assert_one_line(done, 'no dataset')
