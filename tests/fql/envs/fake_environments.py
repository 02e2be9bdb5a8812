"""Small environments for the tests, found by gymnasium as 'fake_environments:<id>'."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np


class Counter(gymnasium.Env):
    """Counts its steps, from 3 to 9 of them; draws from every source that OGBench draws from.

    Observation: the step, and the reset's draws. Reward: the step. Success: reported in every step
    except the last, and in the last one of episodes of odd length.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.timestep = 0
        self.length = int(self.np_random.integers(3, 10))
        self.draws = [np.random.uniform(), *self.action_space.sample(), self.np_random.uniform()]
        return self.observation(), {}

    def step(self, action):
        self.timestep += 1
        self.draws[0] += action[0]
        terminated = self.timestep == self.length
        success = self.length % 2 == 1 if terminated else True
        info = {'success': float(success)}
        return self.observation(), float(self.timestep), terminated, False, info

    def observation(self):
        return np.array([self.timestep, *self.draws])

    def render(self):
        return np.full((6, 8, 3), self.timestep, np.uint8)


class ImageCounter(Counter):
    """A `Counter` that shows the step as the colour of an image."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 5, 3), np.uint8)

    def observation(self):
        return np.full((4, 5, 3), self.timestep, np.uint8) + np.arange(3, dtype=np.uint8)


class Grey(Counter):
    """Shows the step in images of one channel."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 5, 1), np.uint8)

    def observation(self):
        return np.full((4, 5, 1), self.timestep, np.uint8)


class Depth(Counter):
    """Shows the step in images of four channels."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 5, 4), np.uint8)

    def observation(self):
        return np.full((4, 5, 4), self.timestep, np.uint8)


class Reuses(Counter):
    """Writes every observation into the same array."""

    buffer = np.zeros(5)

    def observation(self):
        self.buffer[:] = super().observation()
        return self.buffer


class Named(Counter):
    """Gives a dictionary."""

    observation_space = gymnasium.spaces.Dict({'vector': Counter.observation_space})

    def observation(self):
        return {'vector': super().observation()}


class PythonRandom(Counter):
    """Shows a number of Python's own generator."""

    def observation(self):
        return np.array([self.timestep, 0, 0, 0, random.random()])


class SaysSuccess(Counter):
    """Reports success only where there is one, in episodes of odd length."""

    def step(self, action):
        *result, info = super().step(action)
        return *result, info if info['success'] and result[2] else {}


class Broken(Counter):
    def step(self, action):
        raise ValueError('the motor is on fire\nand more')


class BrokenReset(Counter):
    def reset(self, *, seed=None, options=None):
        sys.exit(7)


class Imports(Counter):
    """Shows which libraries its process has imported."""

    def observation(self):
        names = ('tensorflow', 'jax', 'flax', 'fql.envs.workers', 'numpy')
        return np.array([name in sys.modules for name in names], np.float64)


class StartsProcess(Counter):
    """Shows the id of a process it has started."""

    def __init__(self):
        self.process = subprocess.Popen(['sleep', '120'])

    def observation(self):
        return np.array([self.process.pid, 0, 0, 0, 0], np.float64)


class Fails(Counter):
    """Fails in an episode's second step, or its reset, the first `times` times; files count them.

    Its process is stopped, so that it hangs, or ended by the signal `how`.
    """

    def __init__(self, folder, times, how=signal.SIGSTOP, where='step'):
        self.places = [Path(folder) / str(i) for i in range(times)]
        self.how, self.where = how, where

    def reset(self, *, seed=None, options=None):
        if self.where == 'reset':
            self.fail()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.where == 'step' and self.timestep == 1:
            self.fail()
        return super().step(action)

    def fail(self):
        for place in self.places:
            try:
                place.touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), self.how)
            break


class DiesAtStart(Counter):
    def __init__(self):
        os._exit(5)


class Undrawable(Counter):
    def render(self):
        raise RuntimeError('no OpenGL')


class Dies(Counter):
    """Ends its process in the third step of every episode."""

    def step(self, action):
        if self.timestep == 2:
            os._exit(9)
        return super().step(action)


class NaNObservation(Counter):
    def observation(self):
        return super().observation() + (np.nan if self.timestep == 2 else 0)


class NaNReward(Counter):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, np.nan, terminated, truncated, info


class Grows(Counter):
    """Gives an observation of another shape in the second step."""

    def observation(self):
        return np.zeros(5 + (self.timestep == 2))


class Random(Counter):
    """Shows random numbers that no seed determines."""

    def observation(self):
        return np.frombuffer(os.urandom(5), np.uint8).astype(np.float64)


class WideActions(Counter):
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)


class AddedActions(Counter):
    """Shows the sum of the actions that it was given."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(np.float32([0, -4]), np.float32([20, 6]))

    def reset(self, *, seed=None, options=None):
        self.total = np.zeros(2)
        return super().reset(seed=seed)

    def step(self, action):
        self.total += action
        return super().step(action)

    def observation(self):
        return self.total.copy()


for _env in (Counter, *Counter.__subclasses__()):
    gymnasium.register(f'{_env.__name__}-v0', f'{__name__}:{_env.__name__}')
