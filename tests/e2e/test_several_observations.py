"""Two cameras and proprioception through the program: prepare, train, resume, evaluate, act."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from data_pipeline.replay_store import open_replay
from data_pipeline.store.frame_store import open_store
from fql.envs.make import EnvSpec, make_env
from fql.errors import FQLError
from fql.policies.loaded_policy import load_policy

SMALL = (
    *('--task', 'own', '--dataset', 'arm', '--env', 'robot_arm:Arm-v0', '--batch-size', 8),
    *('--agent', 'bc', '--hidden-dims', 8, '--encoder', 'impala_debug', '--frame-stack', 2),
    *('--log-interval', 1, '--eval-interval', 20, '--eval-episodes', 2, '--eval-workers', 1),
)


@pytest.fixture(scope='module', autouse=True)
def arm():
    """The module `robot_arm`, importable here and in workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import robot_arm

        yield robot_arm
        sys.modules.pop('robot_arm')


@pytest.fixture(scope='module')
def run(run_fql, arm, tmp_path_factory):
    """A run of 20 updates."""
    folder = tmp_path_factory.mktemp('robot')
    done = run_fql('prepare', 'arm', *arm.write_robomimic(folder, arm.roll_out(12)))
    assert done.returncode == 0, done.stderr
    shown = 'agentview_image 12x16x3 uint8, eef_pos 2 float32, wrist 8x9x3 uint8'
    assert shown in done.stdout
    settings = (*SMALL, '--steps', 20, '--save-interval', 10)
    done = run_fql('train', *settings, '--run-dir', folder / 'whole')
    assert done.returncode == 0, done.stderr
    assert 'agentview_image 12x16x6 uint8, eef_pos 4 float32, wrist 8x9x6 uint8' in done.stdout
    assert 'one for each camera' in done.stdout
    assert 'videos: ' + str(folder) in done.stdout
    return folder / 'whole'


@pytest.fixture(scope='module')
def policy(run):
    return load_policy(run)


@pytest.mark.long
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(run_fql, run):
    broken = shutil.copytree(run, run.parent / 'broken')
    shutil.rmtree(broken / 'checkpoints' / '20')
    done = run_fql('train', '--resume', broken)
    assert done.returncode == 0, done.stderr
    assert 'updates 10 to 20' in done.stdout
    digests = [json.loads(run_fql('inspect', 'checkpoint', path).stdout) for path in (run, broken)]
    assert digests[0] == digests[1]
    assert (run / 'train.csv').read_bytes() == (broken / 'train.csv').read_bytes()
    assert len((run / 'train.csv').read_text().splitlines()) == 21


def test_a_loaded_policy_acts_as_in_evaluations(run, policy):
    """Its episode, in an environment made here, is that of the run's evaluation."""
    episodes = json.loads((run / 'evaluations' / '20.json').read_text())
    env = gymnasium.make('robot_arm:Arm-v0')
    observation, _ = env.reset(seed=episodes[0]['seed'])
    policy.reset(seed=10_000)
    rewards, over = [], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        rewards.append(reward)
        over = terminated or truncated
    assert (len(rewards), sum(rewards)) == (episodes[0]['length'], episodes[0]['return'])


WRONG = {
    'one array': (lambda seen: seen['wrist'], 'agentview_image, eef_pos, wrist; got one array'),
    'no wrist': (lambda seen: {'eef_pos': seen['eef_pos']}, 'got eef_pos'),
    'size': (lambda seen: {**seen, 'wrist': seen['wrist'][:-1]}, r'wrist .* got uint8 \(7, 9, 3\)'),
    'type': (lambda seen: {**seen, 'wrist': seen['wrist'] / 255}, r'wrist .* got float64'),
    'rows': (lambda seen: {**seen, 'wrist': seen['wrist'][None]}, 'batches of the same size'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_a_wrong_observation_is_reported_in_one_line(arm, policy, wrong):
    change, message = WRONG[wrong]
    observation, _ = arm.Arm().reset(seed=0)
    policy.reset()
    with pytest.raises(ValueError, match=message):
        policy(change(observation))


def test_a_batch_is_as_many_episodes(arm, policy):
    shown = [arm.Arm().reset(seed=seed)[0] for seed in range(2)]
    batch = {name: np.stack([one[name] for one in shown]) for name in ('wrist', 'eef_pos')}
    batch['agentview_image'] = np.stack([one['agentview_image'] for one in shown])
    policy.reset()
    together = policy(batch)
    policy.reset()
    np.testing.assert_allclose(together[0], policy(shown[0]), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match='the episode began with 1 rows, not 2'):
        policy(batch)


ENVIRONMENTS = {
    'Blind': ('have no agentview_image, wrist, which the data have', 'they have eef_pos'),
    'Plain': ('must be a Dict with agentview_image, eef_pos, wrist, not Box',),
}


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_an_environment_that_lacks_an_array(arm, name):
    spec = EnvSpec(f'robot_arm:{name}-v0', observations=('agentview_image', 'eef_pos', 'wrist'))
    with pytest.raises(FQLError) as caught:
        make_env(spec)
    for text in ENVIRONMENTS[name]:
        assert text in str(caught.value)
    with pytest.raises(FQLError, match=r'not Dict.*prepare --observation-key NAME=KEY'):
        make_env(EnvSpec('robot_arm:Arm-v0'))


def test_an_environment_of_other_shapes(run_fql, assert_one_line, run):
    done = run_fql('evaluate', run, '--env', 'robot_arm:Small-v0', '--episodes', 1)
    text = 'observations wrist (stacked) are (8, 8, 6) uint8, those of the data (8, 9, 6) uint8'
    assert_one_line(done, text)


ONLINE = (
    *(*SMALL, '--steps', 4, '--save-interval', 8, '--keep-latest', 9, '--eval-interval', 0),
    *('--online-steps', 24, '--offline-ratio', 0.5),
)
TWO = ('--online-workers', 2, '--eval-interval', 20)


def replay_of(run):
    return {
        (name, key): np.array(array)
        for name, split in open_replay(run / 'replay').splits.items()
        for key, array in split.arrays.items()
    }


def assert_same_online(run_fql, run, other):
    digests = [json.loads(run_fql('inspect', 'checkpoint', path).stdout) for path in (run, other)]
    assert digests[0] == digests[1]
    expected = replay_of(run)
    found = replay_of(other)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=str(key))
    for name in ('train.csv', 'online.csv'):
        assert (run / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope='module')
def online(run_fql, run, tmp_path_factory):
    """A run that has gone online."""
    folder = tmp_path_factory.mktemp('online') / 'whole'
    done = run_fql('train', *ONLINE, '--run-dir', folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_a_broken_online_phase_ends_as_one_that_was_not(run_fql, online, tmp_path):
    """The replay has more rows than the checkpoint counts, as after a kill; episodes are open."""
    broken = tmp_path / 'broken'
    shutil.copytree(online, broken)
    for step in (24, 28):
        shutil.rmtree(broken / 'checkpoints' / str(step))
    done = run_fql('train', '--resume', broken)
    assert done.returncode == 0, done.stderr
    assert 'is not deterministic' not in done.stderr
    assert_same_online(run_fql, online, broken)


def test_what_the_environments_have_shown_is_in_the_replay(arm, online):
    """Every stored episode, repeated in an environment made here."""
    env = gymnasium.make('robot_arm:Arm-v0')
    repeated = 0
    for number, split in enumerate(open_replay(online / 'replay').splits.values()):
        first = 0
        for episode, length in enumerate(split.lengths.tolist()):
            seed = np.random.SeedSequence((0, number, episode)).generate_state(1)[0]
            observation, _ = env.reset(seed=int(seed))
            for row in range(first, first + length):
                for name, array in split.observations.items():
                    np.testing.assert_array_equal(array[row], observation[name].astype(array.dtype))
                if row < first + length - 1:
                    observation, *_ = env.step(split.actions[row])
                    repeated += 1
            first += length
    assert repeated == 24


def test_a_replay_is_data(run_fql, assert_one_line, environment, online, tmp_path):
    replay = online / 'replay'
    done = run_fql('inspect', 'data', replay, '--verify')
    assert done.returncode == 0, done.stderr
    assert 'observations.wrist' in done.stdout
    assert 'every array is as it was written' in done.stdout
    done = run_fql('prepare', 'replayed', '--source', replay)
    assert done.returncode == 0, done.stderr
    assert 'agentview_image 12x16x3 uint8, eef_pos 2 float32, wrist 8x9x3 uint8' in done.stdout
    done = run_fql('prepare', 'twice', '--source', replay, '--observation-key', 'wrist')
    assert_one_line(done, 'leave out --observation-key')
    done = run_fql('export-tfds', replay, '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    keys = [f'observation/{name}' for name in ('agentview_image', 'eef_pos', 'wrist')]
    flags = [word for key in keys for word in ('--observation-key', key)]
    tfds = ('--tfds', tmp_path, '--reward-key', 'reward', *flags)
    done = run_fql('prepare', 'again', *tfds)
    assert done.returncode == 0, done.stderr
    again = open_store(Path(environment['FQL_DATA_DIR']) / 'again').splits['train'].observations
    for name, array in again.items():
        expected = replay_of(online)['train', f'observations.{name}']
        np.testing.assert_array_equal(array, expected)
    path = replay / 'train' / 'observations.wrist.npy'
    data = bytearray(path.read_bytes())
    data[140] ^= 1
    path.write_bytes(data)
    done = run_fql('train', '--resume', online, '--online-steps', 26)
    assert_one_line(done, 'observations.wrist.npy', 'not what was written')
    data[140] ^= 1
    path.write_bytes(data)


@pytest.mark.long
def test_a_killed_online_phase(run_fql, environment, start_fql, wait_for_checkpoint, run, tmp_path):
    """With two environments and evaluations, after which the newest episode is shown."""
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    done = run_fql('train', *ONLINE, *TWO, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert list((whole / 'videos').glob('online-*.gif'))
    module = f'{Path(__file__).parent}{os.pathsep}{environment["PYTHONPATH"]}'
    for step in (8, 16):
        again = ('--run-dir', killed, '--resume', 'auto')
        process = start_fql('train', *ONLINE, *TWO, *again, PYTHONPATH=module)
        wait_for_checkpoint(process, killed, step)
        process.kill()
        process.communicate()
    done = run_fql('train', '--resume', killed)
    assert done.returncode == 0, done.stderr
    assert_same_online(run_fql, whole, killed)


@pytest.mark.long
def test_a_frozen_encoders_latents_grow_with_the_replay(run_fql, run, tmp_path):
    encoder, whole, broken = (tmp_path / name for name in ('encoder', 'whole', 'broken'))
    done = run_fql('export-encoder', run, '--out', encoder)
    assert done.returncode == 0, done.stderr
    frozen = ('--encoder.from', encoder, '--encoder.mode', 'frozen', '--shift-probability', 0)
    done = run_fql('train', *ONLINE, *frozen, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    shutil.copytree(whole, broken)
    for step in (24, 28):
        shutil.rmtree(broken / 'checkpoints' / str(step))
    done = run_fql('train', '--resume', broken)
    assert done.returncode == 0, done.stderr
    assert_same_online(run_fql, whole, broken)
    latents = np.load(whole / 'replay' / 'train' / 'latents.npy')
    assert (latents != 0).any(axis=1).all()
    np.testing.assert_array_equal(latents, np.load(broken / 'replay' / 'train' / 'latents.npy'))


def test_pictures_and_batches(run_fql, run, tmp_path):
    png, out = tmp_path / 'batch.png', tmp_path / 'batch.npz'
    batch = ('--task', 'own', '--dataset', 'arm', '--frame-stack', 2, '--batch-size', 8)
    done = run_fql('inspect', 'batch', *batch, '--png', png, '--out', out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert arrays['observations.wrist'].shape[1:] == (8, 9, 6)
        assert arrays['next_observations.eef_pos'].shape[1:] == (4,)
        assert arrays['shifts.agentview_image'].shape[1:] == (2,)
    done = run_fql('inspect', 'data', 'arm', '--png', tmp_path / 'data.png', '--verify')
    assert done.returncode == 0, done.stderr
    assert 'observations.wrist' in done.stdout
    assert min(path.stat().st_size for path in tmp_path.glob('*.png')) > 5_000


@pytest.mark.long
def test_an_exported_policy_acts_as_the_run(arm, run_fql, run, tmp_path):
    from jax import export

    done = run_fql('export-policy', run, '--out', tmp_path / 'policy')
    assert done.returncode == 0, done.stderr
    observation, _ = arm.Arm().reset(seed=0)
    policies = [load_policy(path, 'flow') for path in (run, tmp_path / 'policy')]
    actions = [policy(observation) for policy in policies]
    np.testing.assert_array_equal(*actions)
    program = export.deserialize((tmp_path / 'policy' / 'flow.stablehlo').read_bytes())
    stacked = {
        name: np.concatenate([np.asarray(observation[name])] * 2, axis=-1)[None]
        for name in ('agentview_image', 'eef_pos', 'wrist')
    }
    stacked['eef_pos'] = np.float32(stacked['eef_pos'])
    assert program.call(stacked, np.zeros((1, 2), np.float32)).shape == (1, 1, 2)


@pytest.mark.long
@pytest.mark.parametrize('source', ['rlds', 'lerobot'])
def test_other_sources(run_fql, arm, tmp_path, source):
    """Prepare, train, interrupt, resume, evaluate."""
    (tmp_path / 'data').mkdir()
    write = {'rlds': arm.write_rlds, 'lerobot': arm.write_lerobot}[source]
    done = run_fql('prepare', source, *write(tmp_path / 'data', arm.roll_out(12)))
    assert done.returncode == 0, done.stderr
    settings = (*SMALL[:2], '--dataset', source, *SMALL[4:], '--steps', 20, '--save-interval', 10)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = run_fql('train', *settings, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert re.search(r'success: 20: [\d.]+%', done.stdout)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / 'checkpoints' / '20')
    assert run_fql('train', '--resume', broken).returncode == 0
    digests = [run_fql('inspect', 'checkpoint', path).stdout for path in (whole, broken)]
    assert json.loads(digests[0]) == json.loads(digests[1])
    assert (whole / 'train.csv').read_bytes() == (broken / 'train.csv').read_bytes()
