"""Data of your own, in an environment of your own, from images, and a policy trained on them.

python own_dataset.py 3000

A white dot moves over a black picture and should come to its middle.
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np


class Dot(gymnasium.Env):
    """What fql needs of an environment: see docs/own-environment.md."""

    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(3, 28, 2)
        return self.picture(), {}

    def step(self, action):
        self.position = np.clip(self.position + 2 * np.asarray(action), 1, 30)
        reached = bool(np.linalg.norm(self.position - 15.5) < 3)
        return self.picture(), float(reached) - 1, reached, False, {'success': float(reached)}

    def picture(self):
        image = np.zeros((32, 32, 3), np.uint8)
        row, column = self.position.astype(int)
        image[row - 1 : row + 2, column - 1 : column + 2] = 255
        return image


# Workers of evaluations import this file as a module, without the part below.
if 'Dot-v0' not in gymnasium.registry:
    gymnasium.register('Dot-v0', 'own_dataset:Dot', max_episode_steps=40)


def collect(path, episodes):
    """Random episodes in OGBench's layout: a row for each state, the last one without an action."""
    env = gymnasium.make('Dot-v0')
    env.action_space.seed(0)
    rows = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        over = False
        while not over:
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            rows.append((observation, action, reward, 1 - terminated, False))
            observation = following
        rows.append((observation, 0 * action, 0, 1, True))
    names = ('observations', 'actions', 'rewards', 'masks', 'terminals')
    np.savez(path, **dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True)))


def main(updates):
    from data_pipeline.sources.ogbench import npz_splits
    from data_pipeline.store.writer import write_store
    from fql.agents.configs import EncoderConfig, FQLConfig
    from fql.settings.train_config import TrainConfig
    from fql.training.train import train

    collect('dots.npz', episodes=400)
    write_store(Path('data/dots'), 'dots', npz_splits(Path('dots.npz')))
    config = TrainConfig(
        task='own',
        dataset='dots',
        data_dir=str(Path('data').absolute()),
        env='own_dataset:Dot-v0',
        steps=updates,
        batch_size=64,
        frame_stack=1,
        shift_probability=0.0,
        eval_interval=max(updates // 3, 1),
        eval_episodes=20,
        agent=FQLConfig(
            alpha=1.0,
            normalize_q_loss=True,
            discount=0.95,
            hidden_dims=(128, 128),
            encoder=EncoderConfig(size='impala_debug'),
        ),
    )
    return train(config, Path('runs/dots'), resume='auto')


if __name__ == '__main__':
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3_000))
