"""Rollouts: their episodes, their actions and their results."""

import multiprocessing
import signal
from pathlib import Path

import imageio.v3 as iio
import jax.numpy as jnp
import numpy as np
import pytest

from fql.envs.make import EnvSpec
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError
from fql.policies.rollouts import RENDER_EVERY, evaluate, random_policy
from fql.reports.video import Recording, save_video

EPISODES = 7
SEED = 20


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / 'envs')


def fake(name, **settings):
    return EnvSpec(f'fake_environments:{name}-v0', **settings)


def failing(folder, times, **settings):
    return fake('Fails', kwargs=(('folder', str(folder)), ('times', times), *settings.items()))


class Recorder:
    """A policy that records its observations, and acts at random."""

    def __init__(self):
        self.calls = []
        self.policy = random_policy(2, seed=5)

    def __call__(self, observations, episodes, timesteps):
        self.calls.append((observations, episodes, timesteps))
        return self.policy(observations, episodes, timesteps)


def run(name, num_workers, episodes=EPISODES, **settings):
    recorder = Recorder()
    with EnvWorkers(fake(name), num_workers) as workers:
        return evaluate(workers, recorder, episodes, SEED, **settings), recorder.calls


def test_results_are_those_of_the_episodes_last_steps():
    progress = []
    result, _ = run('Counter', 2, progress=lambda *state: progress.append(state))
    assert result.seeds.tolist() == list(range(SEED, SEED + EPISODES))
    assert len(set(result.lengths.tolist())) > 2
    # Counter's reward is the step, and its success in the last step differs from those before.
    np.testing.assert_array_equal(result.returns, result.lengths * (result.lengths + 1) / 2)
    np.testing.assert_array_equal(result.successes, result.lengths % 2)
    assert 0 < result.success < 1
    assert result.success == result.successes.mean()
    assert result.recordings == []
    assert progress == [(ended, EPISODES) for ended in range(1, EPISODES + 1)]


def seen_by_episode(calls):
    """What the policy saw: (episode, timestep) -> observation."""
    return {
        (int(episode), int(timestep)): observation.tolist()
        for observations, episodes, timesteps in calls
        for observation, episode, timestep in zip(observations, episodes, timesteps, strict=True)
    }


@pytest.mark.parametrize('num_workers', [2, 3, 9])
def test_results_do_not_depend_on_the_number_of_workers(num_workers):
    alone, alone_calls = run('Counter', 1)
    result, calls = run('Counter', num_workers)
    for field in ('returns', 'lengths', 'successes', 'seeds'):
        np.testing.assert_array_equal(getattr(result, field), getattr(alone, field))
    seen = seen_by_episode(calls)
    assert seen == seen_by_episode(alone_calls)
    assert set(seen) == {
        (episode, timestep)
        for episode, length in enumerate(alone.lengths)
        for timestep in range(length)
    }


@pytest.mark.parametrize(
    ('num_workers', 'where', 'how', 'fault'),
    [
        (1, 'step', signal.SIGSTOP, 'took longer than 0.6 s'),
        (2, 'reset', signal.SIGSTOP, 'took longer than 0.6 s'),
        (2, 'step', signal.SIGKILL, 'died (exit code -9;'),
        (1, 'reset', signal.SIGKILL, 'died (exit code -9;'),
    ],
)
def test_an_episode_whose_worker_is_lost_is_repeated(tmp_path, num_workers, where, how, fault):
    expected, _ = run('Counter', 1, record_episodes=2)
    notices = []
    spec = failing(tmp_path, 1, how=how, where=where)
    with EnvWorkers(spec, num_workers, step_seconds=0.6) as workers:
        result = evaluate(
            workers, Recorder(), EPISODES, SEED, record_episodes=2, notify=notices.append
        )
    for field in ('returns', 'lengths', 'successes', 'seeds'):
        np.testing.assert_array_equal(getattr(result, field), getattr(expected, field))
    for recording, other in zip(result.recordings, expected.recordings, strict=True):
        np.testing.assert_array_equal(recording.frames, other.frames)
    (notice,) = notices
    assert fault in notice
    assert 'which is repeated' in notice
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('how', [signal.SIGSTOP, signal.SIGKILL])
def test_an_episode_whose_worker_is_lost_again_is_given_up(tmp_path, how):
    spec = failing(tmp_path, 2, how=how)
    with (
        pytest.raises(FQLError, match='in episode 0, for the second time') as caught,
        EnvWorkers(spec, 1, step_seconds=0.6) as workers,
    ):
        evaluate(workers, Recorder(), EPISODES, SEED)
    assert '\n' not in str(caught.value)
    assert not multiprocessing.active_children()


def test_the_policy_gets_one_row_per_worker_always():
    _, calls = run('Counter', 3, episodes=4)
    for observations, episodes, timesteps in calls:
        assert observations.shape == (3, 5)
        assert observations.dtype == np.float32
        assert episodes.shape == timesteps.shape == (3,)
        assert episodes.dtype == timesteps.dtype == np.int32
        assert (observations[:, 0] == timesteps).all()


def test_jax_actions_do_not_make_the_workers_import_jax():
    seen = []

    def policy(observations, episodes, timesteps):
        seen.append(observations)
        return jnp.asarray(random_policy(2, 0)(observations, episodes, timesteps))

    with EnvWorkers(fake('Imports'), 1) as workers:
        evaluate(workers, policy, 1, SEED)
    tensorflow, jax, flax, *_ = seen[-1][0]
    assert len(seen) >= 3
    assert (tensorflow, jax, flax) == (0, 0, 0)


def test_grey_images_are_pictures_and_of_others_the_environment_draws_one():
    for name, every in (('Grey', 1), ('Depth', RENDER_EVERY)):
        with EnvWorkers(fake(name, frame_stack=2), 2) as workers:
            result = evaluate(workers, random_policy(2, 0), 2, SEED, record_episodes=1)
        (recording,) = result.recordings
        assert recording.frames.shape[1:] == ((4, 5, 3) if name == 'Grey' else (6, 8, 3))
        assert recording.frames[:, 0, 0, 0].tolist() == recording.steps
        assert recording.steps[:2] == [0, min(every, int(result.lengths[0]))]


def test_episodes_without_a_success_beside_others_with_one_are_failures():
    lengths = run('Counter', 2)[0].lengths
    notices = []
    result, _ = run('SaysSuccess', 2, notify=notices.append)
    assert result.successes.tolist() == (lengths % 2).tolist()
    assert set(lengths % 2) == {0, 1}
    (notice,) = notices
    assert 'reports no success in' in notice


def test_frames_of_images_are_the_observations_newest():
    with EnvWorkers(fake('ImageCounter', frame_stack=3), 2) as workers:
        result = evaluate(workers, random_policy(2, 0), 4, SEED, record_episodes=3)
    assert [recording.number for recording in result.recordings] == [0, 1, 2]
    for recording, length, success in zip(
        result.recordings, result.lengths, result.successes, strict=False
    ):
        frames = recording.frames
        assert recording.success == success
        assert frames.shape == (length + 1, 4, 5, 3)
        assert frames.dtype == np.uint8
        assert frames[:, 0, 0].tolist() == [
            [step, step + 1, step + 2] for step in range(length + 1)
        ]


def test_frames_of_vectors_are_rendered_now_and_then_and_at_the_end():
    result, _ = run('Counter', 2, record_episodes=7)
    assert 0 < (result.lengths % 5 == 0).sum() < 7
    for recording, length in zip(result.recordings, result.lengths, strict=True):
        expected = sorted({0, *range(5, length, 5), int(length)})
        assert recording.steps == expected
        assert recording.frames.shape == (len(expected), 6, 8, 3)
        assert recording.frames[:, 0, 0, 0].tolist() == expected


def test_chunks_are_executed_to_their_end_and_dropped_with_the_episode(monkeypatch):
    """With chunks of 4, all actions are executed in order, and none in the next episode."""
    asked, executed = [], {}

    def policy(observations, episodes, timesteps):
        asked.append(list(zip(episodes.tolist(), timesteps.tolist(), strict=True)))
        place = timesteps[:, None] + np.arange(4)
        value = (0.1 * episodes[:, None] + 0.001 * place).astype(np.float32)
        return np.repeat(value[..., None], 2, axis=-1)

    with EnvWorkers(EnvSpec('fake_environments:Counter-v0'), 2) as workers:
        step, running = workers.step, {}
        reset = workers.reset

        def watched_reset(seeds):
            running.update({worker: seed - SEED for worker, seed in seeds.items()})
            return reset(seeds)

        def watched_step(actions):
            for worker, action in actions.items():
                executed.setdefault(running[worker], []).append(float(action[0]))
            return step(actions)

        monkeypatch.setattr(workers, 'reset', watched_reset)
        monkeypatch.setattr(workers, 'step', watched_step)
        result = evaluate(workers, policy, 5, SEED)
    for episode, actions in executed.items():
        assert len(actions) == result.lengths[episode]
        expected = 0.1 * episode + 0.001 * np.arange(len(actions))
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6)
    assert any(length % 4 for length in result.lengths)
    assert len(asked) < sum(result.lengths) / 2


def test_no_episodes_is_an_error():
    with pytest.raises(FQLError, match='episodes must be at least 1'):
        run('Counter', 1, episodes=0)


def test_random_actions_depend_on_seed_episode_and_timestep():
    def action(seed, episode, timestep, rows=1):
        ids = np.full(rows, episode, np.int32), np.full(rows, timestep, np.int32)
        return random_policy(3, seed)(np.zeros((rows, 2)), *ids)

    first = action(0, 1, 2)
    assert first.shape == (1, 1, 3)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(action(0, 1, 2, rows=2), np.repeat(first, 2, axis=0))
    for other in (action(1, 1, 2), action(0, 2, 2), action(0, 1, 3), action(0, 2, 1)):
        assert not np.array_equal(other, first)
    many = np.concatenate([action(0, episode, 0) for episode in range(500)])
    assert np.abs(many).max() <= 1
    assert abs(many.mean()) < 0.1
    assert abs(many.std() - 3**-0.5) < 0.05


def recordings():
    long = np.stack([np.full((32, 32, 3), 20 * step, np.uint8) for step in range(5)])
    return [Recording(3, long, range(5), 1.0), Recording(12, 255 - long[:2], range(2), 0.0)]


def test_a_video_shows_episodes_side_by_side_enlarged_and_holds_their_ends(tmp_path):
    path = tmp_path / 'episodes.gif'
    save_video(path, recordings(), fps=10)
    frames = iio.imread(path)
    assert frames.shape == (5, 40 + 192, 2 * 192, 3)
    durations = [iio.immeta(path, index=index)['duration'] for index in range(5)]
    assert durations == [100, 100, 100, 100, 1100]
    np.testing.assert_allclose(frames[:, 140, 96, 0], 20 * np.arange(5), atol=3)
    np.testing.assert_allclose(frames[:, 140, -1, 0], [255, 235, 235, 235, 235], atol=3)


def test_captions_have_the_number_and_at_the_end_the_outcome(tmp_path):
    save_video(tmp_path / 'a.gif', recordings(), fps=10)
    captions = iio.imread(tmp_path / 'a.gif')[:, :40].astype(int)
    first, second = captions[:, :, :190], captions[:, :, 192:]

    def colour(caption):  # Its right edge has no text.
        return caption[20, -3].tolist()

    assert [colour(caption)[1] > 60 for caption in first] == [False] * 4 + [True]
    assert [colour(caption)[0] > 90 for caption in second] == [False] + [True] * 4
    # The number is drawn, and differs; it is the same in all frames, except for GIF's palettes.
    numbers = [caption[:20, :190] > 200 for caption in (first[0], first[3], second[0])]
    assert (numbers[0] != numbers[1]).mean() < 0.002 < (numbers[0] != numbers[2]).mean()


def test_an_ending_of_mp4_makes_an_mp4(tmp_path):
    path = tmp_path / 'episodes.mp4'
    save_video(path, recordings(), fps=10)
    frames = iio.imread(path, plugin='FFMPEG')
    assert path.read_bytes()[4:8] == b'ftyp'
    assert frames.shape == (15, 232, 384, 3)
    np.testing.assert_allclose(frames[:5, 140, 96, 1], 20 * np.arange(5), atol=12)


def test_a_video_that_is_broken_off_is_not_there(tmp_path, monkeypatch):
    def broken_off(file, *arguments, **options):
        if file != '<bytes>':
            Path(file).write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(iio, 'imwrite', broken_off)
    for name in ('a.mp4', 'a.gif'):
        with pytest.raises(KeyboardInterrupt):
            save_video(tmp_path / name, recordings(), fps=10)
    assert not list(tmp_path.iterdir())


def test_an_environment_that_cannot_be_drawn_is_evaluated_without_a_video(monkeypatch):
    expected, _ = run('Counter', 2)
    notices = []
    result, _ = run('Undrawable', 2, record_episodes=2, notify=notices.append)
    np.testing.assert_array_equal(result.returns, expected.returns)
    assert result.recordings == []
    (notice,) = notices
    assert 'no video: ' in notice
    assert 'RuntimeError: no OpenGL' in notice


def test_the_goal_of_a_maze_is_drawn_and_observations_do_not_show_it(opengl):
    spec = EnvSpec('fql.envs.pointmaze:visual-pointmaze-quickstart-singletask-v0')

    def reds(picture):
        r, g, b = (picture[..., i].astype(int) for i in range(3))
        return (r > 120) & (g < 60) & (b < 60)

    with EnvWorkers(spec, 1) as workers:
        observation = workers.reset({0: 0})[0]
        picture = workers.render([0])[0]
        after = workers.step({0: np.zeros(2, np.float32)})[0].observation
    assert picture.shape == (192, 192, 3)
    assert not reds(observation).any()
    # The ball does not move: drawing changed nothing that the policy sees.
    np.testing.assert_array_equal(after, observation)
    rows, columns = np.nonzero(reds(picture))
    assert 20 < len(rows) < 2000
    assert max(np.ptp(rows), np.ptp(columns)) < 20  # One disc.
