"""The quickstart's point maze."""

import numpy as np
import pytest

from fql.envs.make import EnvSpec
from fql.envs.workers import EnvWorkers
from fql.policies.rollouts import evaluate

VISUAL = 'fql.envs.pointmaze:visual-pointmaze-quickstart-singletask-v0'
STATES = 'fql.envs.pointmaze:pointmaze-quickstart-singletask-v0'
FAR = 'fql.envs.pointmaze:pointmaze-quickstart-singletask-task3-v0'


def walk_to_goal(observations, _, __):
    """Up to the goal's row, then right to its column."""
    x, y = observations[:, 0], observations[:, 1]
    up = np.stack([4 - x, 8 - y], axis=-1)
    right = np.stack([12 - x, 8 - y], axis=-1)
    return np.clip(np.where(y[:, None] < 7.5, up, right), -1, 1).astype(np.float32)[:, None]


@pytest.mark.parametrize('timing', ['pre', 'post'])
def test_the_task_is_solved_by_walking_to_the_goal(timing):
    with EnvWorkers(EnvSpec(STATES, (('success_timing', timing),)), 1) as workers:
        result = evaluate(workers, walk_to_goal, episodes=3, seed=0)
    assert result.success == 1
    assert (result.lengths < 110).all()
    assert (result.returns == 1 - result.lengths).all()


def walk_to_the_far_goal(observations, _, __):
    """Along the cells of its path, always to the next one."""
    actions = []
    for x, y in observations:
        if x < 3.5 and y < 2:
            corner = (4, 0)
        elif x < 10 and y < 7.5:
            corner = (4, 8)
        elif x < 11.5:
            corner = (12, 8)
        elif x < 19.5:
            corner = (12, 12) if y < 11.5 else (20, 12)
        else:
            corner = (20, 16)
        actions.append(np.clip(np.subtract(corner, (x, y)), -1, 1))
    return np.array(actions, dtype=np.float32)[:, None]


def test_the_far_task_is_solved_by_walking_its_path():
    with EnvWorkers(EnvSpec(FAR), 1) as workers:
        result = evaluate(workers, walk_to_the_far_goal, episodes=3, seed=0)
    assert result.success == 1
    assert (result.lengths > 100).all()
    assert (result.lengths < 220).all()


def test_success_timing_passes_through():
    lengths = {}
    for timing in ('pre', 'post'):
        with EnvWorkers(EnvSpec(STATES, (('success_timing', timing),)), 1) as workers:
            lengths[timing] = evaluate(workers, walk_to_goal, episodes=2, seed=0).lengths
    np.testing.assert_array_equal(lengths['pre'], lengths['post'] + 1)


TWINS = f"""
import os
os.environ['MUJOCO_GL'] = 'egl'
import gymnasium, numpy as np
twins = [gymnasium.make(env_id) for env_id in ({VISUAL!r}, {STATES!r})]
for env in twins:
    np.random.seed(0)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation), env
    rng = np.random.default_rng(0)
    for _ in range(150):
        env.step(np.clip([0.7, 0.1] + rng.normal(0, 1, 2), -1, 1))
print(*[env.unwrapped.data.qpos.tolist() for env in twins], sep='\\n')
"""


def test_the_twins_move_alike(opengl, run_python):
    done = run_python(TWINS)
    assert done.returncode == 0, done.stderr
    visual, states = done.stdout.splitlines()
    assert visual == states


def test_the_ball_is_seen_wherever_it_starts(opengl):
    with EnvWorkers(EnvSpec(VISUAL), 1) as workers:
        assert workers.observation_shape == (32, 32, 3)
        for seed in range(10):
            frame = workers.reset({0: seed})[0]
            yellow = (frame[..., :2] > 200).all(-1) & (frame[..., 2] < 50)
            assert 4 <= yellow.sum() <= 12
