"""D4RL's environments against the results of D4RL 1.1: steps, goals, terminations, returns."""

import numpy as np
import pytest

from data_pipeline.environment import construct
from fql.envs.make import EnvSpec
from fql.envs.tasks import ADROIT_TASKS, ANTMAZE_TASKS, find_task
from fql.envs.workers import EnvWorkers
from fql.policies.rollouts import evaluate, random_policy

SIZES = {'antmaze': (29, 8), 'pen': (45, 24), 'door': (39, 28), 'hammer': (46, 26)}
SIZES |= {'relocate': (39, 30)}

# Of 60 random actions: how many steps, the sum of the rewards, the sum of the last observation.
# D4RL 1.1's step and get_obs gave them, on its DAPG models in MuJoCo 4.0, from the places
# that seed 0 draws here.
D4RL_ROLLOUTS = {
    'door': (60, -16.92225554090968, 9.002475524002346),
    'hammer': (60, -83.83269690600783, 11.678502427484954),
    'pen': (56, -5.305617447439859, 4.043503850748018),
    'relocate': (60, -1.4809991492633081, 11.335626341781746),
}
# x, y, z and the last three velocities after 30 steps of D4RL's ant.xml.
D4RL_ANT = [-0.3455710586546621, -0.7059689957562412, 0.5418625538645959]
D4RL_ANT += [3.2514707989942444, -0.3032670317714367, 3.0187461512345117]

# D4RL's reference minima, which are returns of random actions, and the tolerance for 100 episodes.
REFERENCE = {'door': (-56.5, 1), 'hammer': (-274.9, 6), 'relocate': (-6.4, 5)}


@pytest.fixture(autouse=True)
def _no_opengl(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'disable')


def make(name):
    return construct(find_task(name).env_id)


@pytest.mark.parametrize('name', [*ANTMAZE_TASKS, *ADROIT_TASKS])
def test_the_18_tasks_of_the_paper_reset_by_seed_and_step(name):
    env = make(name)
    assert (*env.observation_space.shape, *env.action_space.shape) == SIZES[name.split('-')[0]]
    first, _ = env.reset(seed=3)
    observation, _, terminated, truncated, info = env.step(np.zeros(env.action_space.shape))
    assert np.isfinite(observation).all()
    assert (terminated, truncated, info['success']) == (False, False, 0)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    assert not np.array_equal(env.reset(seed=4)[0], first)


def test_a_worker_makes_them():
    with EnvWorkers(EnvSpec(find_task('pen-human-v1').env_id), 1) as workers:
        assert workers.observation_dtype == np.float32
        result = evaluate(workers, random_policy(24, 0), 2, seed=0)
    assert (result.lengths <= 100).all()


@pytest.mark.parametrize('name', D4RL_ROLLOUTS)
def test_adroit_is_as_d4rls_own_code_on_its_own_models(name):
    env = make(f'{name}-human-v1')
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    rewards, terminated = [], False
    while len(rewards) < 60 and not terminated:
        action = rng.uniform(-1, 1, env.action_space.shape)
        observation, reward, terminated, _, _ = env.step(action)
        rewards.append(reward)
    steps, total, last = D4RL_ROLLOUTS[name]
    assert len(rewards) == steps
    assert terminated == (name == 'pen')
    np.testing.assert_allclose([sum(rewards), observation.sum()], [total, last], rtol=1e-6)


def test_the_ant_is_d4rls():
    env = make('antmaze-large-play-v2').unwrapped
    env.reset(seed=0)
    env.set_state(env.init_qpos, env.init_qvel)
    rng = np.random.default_rng(0)
    for _ in range(30):
        observation, *_ = env.step(rng.uniform(-1, 1, 8))
    np.testing.assert_allclose(observation[[0, 1, 2, -3, -2, -1]], D4RL_ANT, rtol=1e-6)
    assert env.dt == 0.1


@pytest.mark.parametrize(
    ('name', 'cell', 'horizon'),
    [
        ('antmaze-umaze-v2', (0, 8), 700),
        ('antmaze-medium-diverse-v2', (20, 20), 1000),
        ('antmaze-large-play-v2', (32, 24), 1000),
    ],
)
def test_goals_are_drawn_at_each_reset_in_the_goals_cell(name, cell, horizon):
    env = make(name)
    goals = []
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        goals.append(env.unwrapped.goal)
        assert np.abs(observation[:2]).max() <= 0.1
    offsets = np.array(goals) - cell
    # The sum of a uniform number up to 1 and one up to 1/2.
    assert offsets.min() >= 0
    assert offsets.max() <= 1.5
    np.testing.assert_allclose(offsets.mean(axis=0), 0.75, atol=0.1)
    np.testing.assert_allclose(offsets.var(axis=0), 1 / 12 + 1 / 48, atol=0.02)
    assert env.spec.max_episode_steps == horizon


@pytest.mark.parametrize(('distance', 'reached'), [(0.45, True), (0.55, False)])
def test_an_episode_ends_within_half_a_metre_of_the_goal(distance, reached):
    env = make('antmaze-medium-play-v2').unwrapped
    env.reset(seed=1)
    positions = env.init_qpos.copy()
    positions[:2] = env.goal + np.array([distance, 0])
    positions[2] = 3  # It falls freely: no contact moves it sideways.
    env.set_state(positions, env.init_qvel)
    _, reward, terminated, truncated, info = env.step(np.zeros(8))
    assert (reward, terminated, truncated) == (float(reached), reached, False)
    assert info['success'] == float(reached)


def test_walls_stop_the_ant():
    env = make('antmaze-umaze-v2').unwrapped
    env.reset(seed=0)
    for velocity in ((-20.0, 0.0), (0.0, -20.0), (0.0, 20.0)):  # Walls on all sides except +x.
        velocities = env.init_qvel.copy()
        velocities[:2] = velocity
        env.set_state(env.init_qpos, velocities)
        for _ in range(10):
            observation, *_ = env.step(np.zeros(8))
        assert np.abs(observation[:2]).max() < 2.5


def test_adroit_without_its_models_names_the_extra(run_python):
    done = run_python(
        'import sys\n'
        "sys.modules['gymnasium_robotics'] = None  # As if it were not installed.\n"
        'from fql.envs.make import EnvSpec, make_env\n'
        'from fql.errors import FQLError\n'
        'try:\n'
        "    make_env(EnvSpec('fql.envs.d4rl_adroit:pen-human-v1'))\n"
        'except FQLError as error:\n'
        '    print(error)\n'
    )
    assert done.stdout == "Adroit needs gymnasium-robotics: pip install 'fql-pixels[d4rl]'\n"


def random_returns(name, episodes):
    env = make(f'{name}-human-v1')
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        rng = np.random.default_rng((episode, 1))
        total, over = 0.0, False
        while not over:
            action = rng.uniform(-1, 1, env.action_space.shape)
            _, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.array(returns)


@pytest.mark.parametrize('name', ['door', 'relocate'])
def test_random_actions_return_about_what_d4rl_states(name):
    expected, tolerance = REFERENCE[name]
    assert abs(random_returns(name, 5).mean() - expected) < 2 * tolerance


@pytest.mark.long
@pytest.mark.parametrize('name', REFERENCE)
def test_random_actions_return_d4rls_minimum(name):
    expected, tolerance = REFERENCE[name]
    returns = random_returns(name, 100)
    print(f'{name}: {returns.mean():.2f} +- {returns.std() / 10:.2f}, D4RL {expected}')
    assert abs(returns.mean() - expected) < tolerance
