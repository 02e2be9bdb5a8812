"""The quickstart's environments: OGBench's point maze, with a picture a laptop draws in 2 ms.

Importing this module registers them, so gymnasium finds them by 'fql.envs.pointmaze:<id>':

    visual-pointmaze-quickstart-v0               pixels, no fixed task: for data collection
    visual-pointmaze-quickstart-singletask-v0    pixels, one fixed task: for evaluation
    pointmaze-quickstart-v0                      the state-based twins of the two, which need no
    pointmaze-quickstart-singletask-v0           OpenGL: for relabelling
"""

import os
from typing import Any

import gymnasium
import numpy as np

FRAME_SIZE = 32
# Rows and columns of the maze's cells, as in OGBench's `task_infos`.
START_IJ = (2, 2)
GOAL_IJ = (3, 4)
MAX_EPISODE_STEPS = 200

# OGBench's ball (radius 0.7, brown) covers one or two of the 32 x 32 pixels; this one covers seven.
BALL_RADIUS = 1.0
BALL_RGBA = (1.0, 1.0, 0.0, 1.0)


def make_pointmaze(**kwargs: Any) -> gymnasium.Env:
    """Makes OGBench's medium point maze with a larger ball and, for pixels, a cheap renderer.

    Pixel observations are (height, width, 3) uint8, seen from above; states are (2,) float64, the
    ball's x and y. The single-task mode (`reward_task_id=1`) has the one task START_IJ -> GOAL_IJ.

    Args:
        **kwargs: those of `ogbench.locomaze.maze.make_maze_env`, such as `success_timing`.
    """
    from ogbench.locomaze.maze import make_maze_env

    env = make_maze_env('point', 'maze', maze_type='medium', **kwargs)
    os.remove(env.fullpath)  # OGBench writes the maze's XML to a temporary file and leaves it.
    _replace_tasks(env)
    _enlarge_ball(env.model)
    if env._ob_type == 'pixels':
        _cheapen_renderer(env)
        shape = (env.height, env.width, 3)
        env.observation_space = gymnasium.spaces.Box(0, 255, shape, dtype=np.uint8)
    return env


def _replace_tasks(env: Any) -> None:
    if env._reward_task_id is None:
        return
    env.task_infos = [
        {
            'task_name': 'task1',
            'init_ij': START_IJ,
            'init_xy': env.ij_to_xy(START_IJ),
            'goal_ij': GOAL_IJ,
            'goal_xy': env.ij_to_xy(GOAL_IJ),
        }
    ]
    env.num_tasks = 1


def _enlarge_ball(model: Any) -> None:
    """Changes the ball in the picture and in collisions, so that both twins move alike."""
    ball = model.geom('pointbody').id
    model.geom_size[ball, 0] = BALL_RADIUS
    model.geom_rbound[ball] = BALL_RADIUS
    model.geom_pos[ball, 2] = BALL_RADIUS
    material = model.geom_matid[ball]
    model.mat_rgba[material] = BALL_RGBA
    model.mat_emission[material] = 1.0


def _cheapen_renderer(env: Any) -> None:
    """Drops shadows and multisampling: with Mesa's software OpenGL, 36 ms a frame become 2."""
    env.model.light_castshadow[:] = 0
    env.model.vis.quality.offsamples = 0
    env.custom_renderer.close()
    env.initialize_renderer()


def _register(env_id: str, max_episode_steps: int, **kwargs: Any) -> None:
    gymnasium.register(
        id=env_id,
        entry_point='fql.envs.pointmaze:make_pointmaze',
        max_episode_steps=max_episode_steps,
        kwargs={'add_noise_to_goal': False, **kwargs},
    )


_PIXELS = {
    'ob_type': 'pixels',
    'render_mode': 'rgb_array',
    'width': FRAME_SIZE,
    'height': FRAME_SIZE,
}
# As in OGBench's own single-task registrations; pass success_timing='post' for the paper's.
_SINGLE_TASK = {'reward_task_id': 1, 'success_timing': 'pre'}

_register('visual-pointmaze-quickstart-v0', 1000, **_PIXELS)
_register('visual-pointmaze-quickstart-singletask-v0', MAX_EPISODE_STEPS, **_PIXELS, **_SINGLE_TASK)
_register('pointmaze-quickstart-v0', 1000)
_register('pointmaze-quickstart-singletask-v0', MAX_EPISODE_STEPS, **_SINGLE_TASK)
