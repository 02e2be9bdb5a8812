"""The small benchmark's puzzle: OGBench's physics and rules, four buttons, a cheap picture."""

import json

import numpy as np
import pytest

MODULE = 'fql.envs.small_puzzle'
# Presses button 3 twice, then button 0: moves the closed fingers above each, down and up again.
PRESS = f"""
import os
os.environ['MUJOCO_GL'] = 'egl'
import json
import sys
import gymnasium
import numpy as np
visual = 'visual-' if sys.argv[1] == 'visual' else ''
env = gymnasium.make(f'{MODULE}:{{visual}}puzzle-small-singletask-v0', success_timing='post')
env.action_space.seed(0)
observation, info = env.reset(seed=0)
assert env.observation_space.contains(observation)
presses = ((0.475, 0.05), (0.475, 0.05), (0.375, -0.05))
goals = [(x, y, z) for x, y in presses for z in (0.15, 0.05, 0.15)]
states, rewards, frames, successes = [], [], [observation], []
for goal in goals:
    for _ in range(20):
        offset = np.array(goal) - info['proprio/effector_pos']
        action = np.clip([*(offset / 0.05), 0, 1], -1, 1)
        observation, reward, terminated, truncated, info = env.step(action)
        states.append(info['button_states'].tolist())
        frames.append(observation)
        rewards.append(float(reward))
        successes.append(float(info['success']))
        if terminated:
            break
    if terminated:
        break
assert not truncated
qpos = env.unwrapped.data.qpos.tolist()
shown = [frames[0].tolist(), frames[-1].tolist()] if visual else []
print(json.dumps([states, rewards, successes, qpos, shown]))
"""
LABELS = f"""
import json
import sys
import numpy as np
from data_pipeline.store.labels import relabel
states = np.array(json.loads(sys.argv[1]))
info = {{
    'qpos': np.zeros((len(states), 18)),
    'qvel': np.zeros((len(states), 18)),
    'button_states': states,
}}
rewards, masks = relabel('puzzle', 5, info, '{MODULE}:puzzle-small-singletask-v0')
print(json.dumps([rewards.tolist(), masks.tolist()]))
"""


@pytest.fixture(scope='module')
def printed(run_python):
    """printed(code, *arguments): the JSON that a fresh interpreter prints."""

    def printed(code, *arguments):
        done = run_python(code, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return printed


@pytest.fixture(scope='module')
def pressed(printed):
    """What the presses lead to in the state-based twin."""
    return printed(PRESS, 'states')


def test_presses_change_a_button_and_its_neighbours(pressed):
    states, _, successes, _, _ = pressed
    changes = [state for state, before in zip(states[1:], states, strict=False) if state != before]
    assert changes == [[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert successes == [0.0] * (len(states) - 1) + [1.0]


def test_labels_are_the_rewards_of_the_environment(printed, pressed):
    states, rewards, successes, _, _ = pressed
    labels, masks = printed(LABELS, json.dumps(states))
    assert labels == rewards
    assert set(rewards) == {-3.0, -2.0, 0.0}
    np.testing.assert_array_equal(masks, 1 - np.array(successes))


def test_the_twins_move_alike_and_lights_and_fingers_are_seen(opengl, printed, pressed):
    states, rewards, _, qpos, (first, last) = printed(PRESS, 'visual')
    assert (states, rewards, qpos) == (pressed[0], pressed[1], pressed[3])
    first, last = np.array(first, int), np.array(last, int)
    assert first.shape == (32, 32, 3)
    rows, columns = np.nonzero((first[..., 0] > 200) & (first[..., 1:] < 150).all(-1))
    assert np.ptp(rows) >= 9  # Two rows of lights, not one.
    assert np.ptp(columns) >= 9
    for frame, lit in ((first, 0), (last, 3)):
        red, green, blue = np.moveaxis(frame, -1, 0)
        assert ((red > 200) & (green < 150)).sum() >= 15 * (4 - lit)
        assert ((blue > 200) & (red < 180)).sum() >= 15 * lit
        assert ((blue > green + 40) & (red > green + 20)).sum() >= 10
