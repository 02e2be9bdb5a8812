"""Environments that do not return what gymnasium's interface and their own spaces say."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from fql.envs.checked import check_observation, check_results
from fql.envs.pictures import Painter
from fql.errors import FQLError

ZERO = np.zeros(3, np.float32)


class Odd(gymnasium.Env):
    """Returns what it is given."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, result):
        self.result = result

    def reset(self, *, seed=None, options=None):
        return self.result

    def step(self, action):
        return self.result


def step_of(reward=0.0, **info):
    return ZERO, reward, False, False, info


def stepped(result):
    env = check_results(gymnasium.wrappers.TimeLimit(Odd((ZERO, {})), 9), 'odd:Odd-v0')
    env.reset()
    env.unwrapped.result = result
    return env.step(np.zeros(2))


@pytest.mark.parametrize(
    ('result', 'message'),
    [
        ((ZERO, 1.0, False, {}), r'step must return .* as in gymnasium since 0\.26.*; .* 4 values'),
        (ZERO, 'it returned ndarray'),
        ((*step_of()[:4], None), 'an info of type NoneType'),
        (step_of('one'), "the reward must be a number, not 'one'"),
        (step_of(None), 'the reward must be a number, not None'),
        (step_of(np.ones((40, 40))), 'the reward must be a number, not array'),
        (step_of(np.nan), 'the reward must be finite in float32, not nan'),
        (step_of(-np.inf), 'the reward must be finite in float32, not -inf'),
        (step_of(success='yes'), r"info\['success'\] must be a number, not 'yes'"),
        (step_of(success=np.array([True, False])), r"info\['success'\] must be a number"),
        (step_of(success=7), r"info\['success'\] must lie in \[0, 1\], not 7"),
    ],
)
def test_results_of_another_form_are_refused_in_one_line(result, message):
    with pytest.raises(FQLError, match=f'^odd:Odd-v0: [^\n]*{message}[^\n]*$'):
        stepped(result)


def test_results_of_gymnasiums_form_are_numbers_then():
    for reward, success, expected in ((1, True, 1), (np.ones(1), None, np.nan), (1.0, 0.5, 0.5)):
        _, found, _, _, info = stepped(step_of(reward, success=success, other=3))
        assert (type(found), found, info['other']) == (float, 1, 3)
        np.testing.assert_equal(info['success'], float(expected))
    assert np.isnan(stepped(step_of())[-1]['success'])


@pytest.mark.parametrize('result', [ZERO, (ZERO, 1), (ZERO,)])
def test_a_reset_without_info(result):
    env = check_results(Odd(result), 'odd:Odd-v0')
    with pytest.raises(FQLError, match=r'reset must return \(observation, info\)'):
        env.reset()


def test_a_reset_without_seed(monkeypatch):
    monkeypatch.setattr(Odd, 'reset', lambda self: (ZERO, {}))
    with pytest.raises(FQLError, match=r'^odd: reset must take seed and options'):
        check_results(Odd(ZERO), 'odd')


@pytest.mark.parametrize(
    'pictures',
    [
        [np.zeros((4, 4, 3))],
        [np.zeros((4, 4), np.uint8)],
        [np.zeros((0, 4, 3), np.uint8)],
        [np.zeros((4, 4, 4), np.uint8)],
        [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)],
    ],
)
def test_pictures_of_which_no_video_can_be_made(pictures):
    env = Odd(ZERO)
    painter = Painter(env)
    *sound, last = pictures
    for picture in sound:
        env.render = lambda picture=picture: picture
        painter.draw()
    env.render = lambda: last
    with pytest.raises(ValueError, match='its picture'):
        painter.draw()


IMAGE = Box(0, 255, (2, 2, 3), np.uint8)
VECTOR = Odd.observation_space


@pytest.mark.parametrize(
    ('space', 'observation', 'message'),
    [
        (VECTOR, np.zeros(4), r'observation is float64 \(4,\), though its space is float32 \(3,\)'),
        (VECTOR, ['a', 'b', 'c'], 'observation is <U1'),
        (VECTOR, np.array([0, np.nan, 0]), 'not finite'),
        (VECTOR, np.array([0, 1e308, 0]), 'not finite'),
        (IMAGE, np.full((2, 2, 3), 0.5), 'float64 .* though its space is uint8'),
        ({'front': IMAGE, 'arm': VECTOR}, {'front': IMAGE.sample()}, 'observation arm is missing'),
        ({'front': IMAGE, 'arm': VECTOR}, {'front': ZERO, 'arm': ZERO}, 'observation front is'),
    ],
)
def test_observations_that_are_not_of_their_space(space, observation, message):
    with pytest.raises(FQLError, match=f'^odd: {message}|^odd: .*{message}'):
        check_observation('odd', space, observation)


def test_observations_of_their_space():
    for space, observation in (
        (VECTOR, [1, 2, 3.5]),
        (VECTOR, np.arange(3)),
        (IMAGE, IMAGE.sample()),
    ):
        checked = check_observation('odd', space, observation)
        np.testing.assert_array_equal(checked, observation)
        assert not np.shares_memory(checked, observation)
