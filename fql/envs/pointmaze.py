"""The quickstart's environments: OGBench's point maze, with a picture a laptop draws in 2 ms.

Importing this module registers them, so gymnasium finds them by 'fql.envs.pointmaze:<id>':

    visual-pointmaze-quickstart-v0                     pixels, no fixed task: for data collection
    visual-pointmaze-quickstart-singletask-v0          pixels, the first task: for evaluation
    visual-pointmaze-quickstart-singletask-task2-v0    pixels, a goal in a far corner
    visual-pointmaze-quickstart-singletask-task3-v0    pixels, a path of 130 steps in place of 50

and, without `visual-`, their state-based twins, which need no OpenGL: for relabelling.
"""

import os
from typing import Any

import gymnasium
import numpy as np

FRAME_SIZE = 32
# Start and goal of each task: rows and columns of the maze's cells, as in OGBench's `task_infos`.
TASKS = (((2, 2), (3, 4)), ((2, 2), (6, 6)), ((1, 1), (5, 6)))
MAX_EPISODE_STEPS = (200, 400, 400)

# OGBench's ball (radius 0.7, brown) covers one or two of the 32 x 32 pixels; this one covers seven.
BALL_RADIUS = 1.0
BALL_RGBA = (1.0, 1.0, 0.0, 1.0)


def make_pointmaze(**kwargs: Any) -> gymnasium.Env:
    """Make OGBench's medium point maze with a larger ball and, for pixels, a cheap renderer.

    Pixel observations are (height, width, 3) uint8, seen from above; states are (2,) float64, the
    ball's x and y. The single-task mode (`reward_task_id=1`, 2 or 3) has those of `TASKS`.

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
            'task_name': f'task{number}',
            'init_ij': start,
            'init_xy': env.ij_to_xy(start),
            'goal_ij': goal,
            'goal_xy': env.ij_to_xy(goal),
        }
        for number, (start, goal) in enumerate(TASKS, 1)
    ]
    env.num_tasks = len(TASKS)


def _enlarge_ball(model: Any) -> None:
    """Change the ball in the picture and in collisions, so that both twins move alike."""
    ball = model.geom('pointbody').id
    model.geom_size[ball, 0] = BALL_RADIUS
    model.geom_rbound[ball] = BALL_RADIUS
    model.geom_pos[ball, 2] = BALL_RADIUS
    material = model.geom_matid[ball]
    model.mat_rgba[material] = BALL_RGBA
    model.mat_emission[material] = 1.0


def _cheapen_renderer(env: Any) -> None:
    """Drop shadows and multisampling: with Mesa's software OpenGL, 36 ms a frame become 2."""
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
_register('visual-pointmaze-quickstart-v0', 1000, **_PIXELS)
_register('pointmaze-quickstart-v0', 1000)
for number, limit in enumerate(MAX_EPISODE_STEPS, 1):
    suffix = '' if number == 1 else f'-task{number}'
    # As in OGBench's own single-task registrations; pass success_timing='post' for the paper's.
    single_task = {'reward_task_id': number, 'success_timing': 'pre'}
    name = f'pointmaze-quickstart-singletask{suffix}-v0'
    _register(f'visual-{name}', limit, **_PIXELS, **single_task)
    _register(name, limit, **single_task)
