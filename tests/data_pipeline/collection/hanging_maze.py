"""A point maze that hangs, found by gymnasium as 'hanging_maze:pointmaze-hangs-v0'."""

import os
import signal
from pathlib import Path

import gymnasium

from fql.envs.pointmaze import make_pointmaze


class Hangs(gymnasium.Wrapper):
    """Stops its process in its step `at`, the first `times` times; files in `folder` count them."""

    def __init__(self, env, folder, at, times):
        super().__init__(env)
        self.places = [Path(folder) / str(i) for i in range(times)]
        self.left = at

    def step(self, action):
        self.left -= 1
        for place in self.places if self.left == 0 else []:
            try:
                place.touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGSTOP)
            break
        return self.env.step(action)


def make(folder, at, times, **kwargs):
    return Hangs(make_pointmaze(**kwargs), folder, at, times)


gymnasium.register(
    'pointmaze-hangs-v0', make, max_episode_steps=1000, kwargs={'add_noise_to_goal': False}
)
