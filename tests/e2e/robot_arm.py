"""A robot with two cameras of different sizes and proprioception, and its demonstrations."""

from pathlib import Path

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Dict


class Arm(gymnasium.Env):
    """A point to be moved to the origin, seen by two cameras as brightness."""

    observation_space = Dict(
        {
            'agentview_image': Box(0, 255, (12, 16, 3), np.uint8),
            'wrist': Box(0, 255, (8, 9, 3), np.uint8),
            'eef_pos': Box(-2, 2, (2,), np.float64),
            'joints': Dict({'angle': Box(-1, 1, (1,))}),
        }
    )
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.observation(), {}

    def step(self, action):
        self.position = np.clip(self.position + 0.2 * np.asarray(action, np.float64), -2, 2)
        reached = bool(np.linalg.norm(self.position) < 0.2)
        return self.observation(), float(reached) - 1, reached, False, {'success': float(reached)}

    def observation(self):
        shade = np.uint8(60 * np.abs(self.position) + 1)
        return {
            'agentview_image': np.full((12, 16, 3), shade[0]),
            'wrist': np.full((8, 9, 3), shade[1]),
            'eef_pos': self.position.copy(),
            'joints': {'angle': np.zeros(1, np.float32)},
        }

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


class Blind(Arm):
    observation_space = Dict({'eef_pos': Arm.observation_space['eef_pos']})


class Small(Arm):
    observation_space = Dict(
        {**Arm.observation_space.spaces, 'wrist': Box(0, 255, (8, 8, 3), np.uint8)}
    )


class Plain(Arm):
    observation_space = Arm.observation_space['eef_pos']


for _env in (Arm, *Arm.__subclasses__()):
    gymnasium.register(f'{_env.__name__}-v0', f'{__name__}:{_env.__name__}', max_episode_steps=6)


def write_demonstrations(path: Path, count: int) -> None:
    """An HDF5 file in robomimic's layout: random steps from `count` places."""
    env = gymnasium.make('robot_arm:Arm-v0')
    env.action_space.seed(0)
    with h5py.File(path, 'w') as file:
        for number in range(count):
            observation, _ = env.reset(seed=number)
            rows, over = [], False
            while not over:
                action = env.action_space.sample()
                following, reward, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
                rows.append((observation, following, action, reward, terminated))
                observation = following
            seen, after, actions, rewards, dones = zip(*rows, strict=True)
            demo = file.create_group(f'data/demo_{number}')
            demo['actions'], demo['rewards'], demo['dones'] = actions, rewards, dones
            for key in ('agentview_image', 'wrist', 'eef_pos'):
                name = 'robot0_eye_in_hand_image' if key == 'wrist' else key
                demo[f'obs/{name}'] = [each[key] for each in seen]
                demo[f'next_obs/{name}'] = [each[key] for each in after]
