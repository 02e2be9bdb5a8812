"""Environments that fill a replay: what is stored, what a resume restores, faults."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.replay import Replay, RowLayout
from data_pipeline.replay_store import open_replay
from fql.envs.make import EnvSpec
from fql.envs.workers import EnvWorkers, Step
from fql.errors import FQLError
from fql.training.actors import MAX_REPLACED, Actors

STACK = 2


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    """Spawned processes get this process's sys.path."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'envs')


def act(horizon):
    """A policy of noise, which depends only on the key and the parameters."""

    def sample(key, episode, timestep):
        key = jax.random.fold_in(jax.random.fold_in(key, episode), timestep)
        return jax.random.uniform(key, (horizon, 2))

    @jax.jit
    def act(scale, key, observations, episodes, timesteps):
        del observations
        return scale * jax.vmap(sample, (None, 0, 0))(key, episodes, timesteps)

    return act


class World:
    """Workers of a fake environment, a replay and the actors between them."""

    def __init__(self, path, name, workers=2, horizon=1, records=None, limit=None, kwargs=()):
        spec = EnvSpec(
            f'fake_environments:{name}-v0',
            frame_stack=STACK,
            max_episode_steps=limit,
            kwargs=kwargs,
        )
        self.workers = EnvWorkers(spec, workers)
        self.layout = RowLayout((5,), 'float32', 2)
        self.episodes = []
        try:
            self.replay = Replay(path, name, self.layout, workers, records)
        except BaseException:
            self.workers.close()
            raise
        self.actors = Actors(
            self.workers,
            self.replay,
            act(horizon),
            jax.random.key(0),
            7,
            self.episodes.append,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.replay.__exit__(*exception)
        self.workers.__exit__(*exception)

    def turn(self, scale=1.0):
        self.actors.begin(self.actors.choose(jnp.float32(scale)))
        self.actors.finish()


def test_the_replay_holds_what_the_environments_have_shown(tmp_path):
    """Compared with the environments, which repeat every stored episode."""
    with World(tmp_path / 'replay', 'Counter', limit=7) as world:
        world.actors.start()
        for _ in range(30):
            world.turn()
    store = open_replay(tmp_path / 'replay')
    assert store.splits.keys() == {'train', 'train_1'}
    spec = EnvSpec('fake_environments:Counter-v0', max_episode_steps=7)
    ended, starts, masks_of_limit = 0, set(), set()
    with EnvWorkers(spec, 1) as workers:
        for stream, split in enumerate(store.splits.values()):
            assert split.num_transitions == 30 - (split.lengths[-1] == 1)
            first = 0
            for number, length in enumerate(split.lengths.tolist()):
                seed = np.random.SeedSequence((7, stream, number)).generate_state(1)[0]
                observation = workers.reset({0: int(seed)})[0]
                np.testing.assert_array_equal(split.observations[first], observation)
                starts.add(tuple(observation.tolist()))
                for row in range(first, first + length - 1):
                    step = workers.step({0: split.actions[row]})[0]
                    np.testing.assert_array_equal(split.observations[row + 1], step.observation)
                    assert split.labels['rewards'][row] == np.float32(step.reward)
                    assert split.labels['masks'][row] == float(not step.terminated)
                if step.truncated and not step.terminated:
                    masks_of_limit.add(split.labels['masks'][row])
                ended += step.terminated or step.truncated
                first += length
    assert masks_of_limit == {1.0}
    assert len(starts) == sum(len(split.lengths) for split in store.splits.values())
    assert len(world.episodes) == ended
    for episode in world.episodes:
        assert episode['return'] == sum(range(1, episode['length'] + 1))


def test_actions_depend_on_parameters_episode_and_step_only(tmp_path):
    seen = []
    for workers in (1, 2):
        with World(tmp_path / str(workers), 'Counter', workers) as world:
            world.actors.start()
            for scale in (0.5, 0.5, 0.25):
                world.turn(scale)
            seen.append(world.replay.streams[0].read('actions', 0, 3))
    np.testing.assert_array_equal(*seen)
    assert len(np.unique(seen[0])) == 6
    with World(tmp_path / 'other', 'Counter', 1) as world:
        world.actors.start()
        for scale in (0.5, 0.25, 0.5):
            world.turn(scale)
        other = world.replay.streams[0].read('actions', 0, 3)
    np.testing.assert_array_equal(other, seen[0] * np.array([[1], [0.5], [2]], np.float32))


@pytest.mark.parametrize('horizon', [1, 3])
def test_what_was_broken_off_is_brought_back(tmp_path, horizon):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    with World(whole, 'Counter', horizon=horizon) as world:
        world.actors.start()
        for _ in range(20):
            world.turn()
        end, episodes = world.replay.commit(), world.episodes
    with World(broken, 'Counter', horizon=horizon) as world:
        world.actors.start()
        for _ in range(11):
            world.turn()
        records, queues = world.replay.commit(), world.actors.queues
        for _ in range(4):  # Other steps, which are lost.
            world.turn(0.1)
    assert horizon == 1 or any(queues)
    with World(broken, 'Counter', horizon=horizon, records=records) as world:
        world.actors.bring_back(queues)
        for _ in range(9):
            world.turn()
        assert world.replay.commit() == end
        later = world.episodes
    assert episodes[-len(later) :] == later


def test_an_environment_that_does_not_repeat_itself_is_reported(tmp_path, capsys):
    with World(tmp_path / 'replay', 'Random', 1) as world:
        world.actors.start()
        world.turn()
        world.turn()
        records, queues = world.replay.commit(), world.actors.queues
        rows = world.replay.streams[0].rows
    with World(tmp_path / 'replay', 'Random', 1, records=records) as world:
        world.actors.bring_back(queues)
        assert 'is not deterministic' in capsys.readouterr().out
        stream = world.replay.streams[0]
        assert stream.episodes.ends.tolist() == [rows - 1]
        assert stream.rows == rows + 1
        world.turn()


def test_a_worker_that_dies_while_its_episode_is_repeated_is_replaced(tmp_path, capsys):
    with World(tmp_path / 'replay', 'Counter') as world:
        world.actors.start()
        for _ in range(4):
            world.turn()
        records, queues = world.replay.commit(), world.actors.queues
        rows = [stream.rows for stream in world.replay.streams]
    with World(tmp_path / 'replay', 'Dies', records=records) as world:
        world.actors.bring_back(queues)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all('died' in line and 'takes its place' in line for line in lines)
        for stream, before in zip(world.replay.streams, rows, strict=True):
            assert stream.episodes.ends.tolist()[-1] == before - 1
            assert stream.rows == before + 1
        world.turn()


class Seen:
    """In place of workers: one environment of two arrays, of which one may come out different."""

    spec, step_seconds = EnvSpec('seen'), 1.0

    def __init__(self, different=''):
        self.observation_shape = {'image': (2, 2, 1), 'pose': (3,)}
        self.observation_dtype = {'image': np.dtype('uint8'), 'pose': np.dtype('float32')}
        self.different = different

    def see(self):
        shown = {
            name: np.full(shape, self.time, self.observation_dtype[name])
            for name, shape in self.observation_shape.items()
        }
        if self.different and self.time:
            shown[self.different].flat[-1] += 1
        return {0: shown}

    def reset(self, seeds):
        if not seeds:
            return {}
        self.time = 0
        return self.see()

    def step(self, actions):
        del actions
        self.time += 1
        return {0: Step(self.see()[0], 0.0, False, False, 0.0)}

    begin_steps = step

    def finish_steps(self, indices):
        del indices
        return {0: Step(self.see()[0], 0.0, False, False, 0.0)}


@pytest.mark.parametrize('different', ['', 'image', 'pose'])
def test_every_array_is_compared_with_what_was_stored(tmp_path, capsys, different):
    layout = RowLayout(Seen().observation_shape, {'image': 'uint8', 'pose': 'float32'}, 2)

    def make_actors(replay, different=''):
        report = {}.update
        return Actors(Seen(different), replay, act(1), jax.random.key(0), 7, report)

    with Replay(tmp_path / 'replay', 'seen', layout, 1) as replay:
        actors = make_actors(replay)
        actors.start()
        for _ in range(2):
            actors.begin(actors.choose(jnp.float32(1)))
            actors.finish()
        records, queues = replay.commit(), actors.queues
    with Replay(tmp_path / 'replay', 'seen', layout, 1, records) as replay:
        make_actors(replay, different).bring_back(queues)
        assert ('is not deterministic' in capsys.readouterr().out) == bool(different)
        assert replay.streams[0].rows == (4 if different else 3)


def test_a_worker_that_dies_is_replaced_up_to_a_limit(tmp_path, capsys):
    with World(tmp_path / 'replay', 'Dies', 1) as world:
        world.actors.start()
        for _ in range(3 * MAX_REPLACED):
            world.turn()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == MAX_REPLACED
        assert 'step 2) died' in lines[0]
        assert 'takes its place' in lines[0]
        stream = world.replay.streams[0]
        assert stream.episodes.ends.tolist() == list(range(2, 3 * MAX_REPLACED, 3))
        assert world.episodes == []
        world.turn()
        world.turn()
        with pytest.raises(FQLError, match=f'{MAX_REPLACED} workers were replaced before'):
            world.turn()


@pytest.mark.parametrize('times', [1, MAX_REPLACED + 1])
def test_a_worker_that_dies_in_a_reset_is_replaced_up_to_a_limit(tmp_path, capsys, times):
    kwargs = (('folder', str(tmp_path)), ('times', times), ('how', 9), ('where', 'reset'))
    with World(tmp_path / 'replay', 'Fails', 1, kwargs=kwargs) as world:
        if times == 1:
            world.actors.start()
            (line,) = capsys.readouterr().out.splitlines()
            assert 'reset with seed' in line
            assert 'died (exit code -9' in line
            world.turn()
            assert world.replay.streams[0].rows == 2
        else:
            with pytest.raises(FQLError, match=r'reset with seed .* were replaced before'):
                world.actors.start()


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('NaNObservation', 'observation holds values that are not finite'),
        ('NaNReward', 'the reward must be finite in float32, not nan'),
        ('Grows', r'observation is float64 \(6,\), though its space is float64 \(5,\)'),
        ('Broken', 'the motor is on fire'),
    ],
)
def test_what_an_environment_must_not_give(tmp_path, name, message):
    with World(tmp_path / 'replay', name, 1) as world:
        world.actors.start()
        rows = []

        def turns():
            for _ in range(2):
                rows.append(world.replay.streams[0].rows)
                world.turn()

        with pytest.raises(FQLError, match=message):
            turns()
        assert world.replay.streams[0].rows == rows[-1]  # Nothing of it was appended.
