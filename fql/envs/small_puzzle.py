"""A manipulation task that two processor cores render and learn: OGBench's puzzle, four buttons.

The arm, its actions and the rule of Lights Out are those of OGBench's puzzles: a press changes a
button and its neighbours. The 2 x 2 buttons are wider. The camera is nearer, and the arm's
transparent links, shadows and multisampling are not drawn: with Mesa's software OpenGL a frame
takes 7 ms in place of 200.

Importing this module registers the environments, so gymnasium finds them by
'fql.envs.small_puzzle:<id>':

    visual-puzzle-small-v0               pixels, no fixed task: for data collection
    visual-puzzle-small-singletask-v0    pixels, one button to press: for evaluation

and, without `visual-`, their state-based twins, which need no OpenGL: for relabelling.
"""

from typing import Any

import gymnasium
import numpy as np

FRAME_SIZE = 32
MAX_EPISODE_STEPS = 150
ROWS = COLUMNS = 2
TASK = {
    'task_name': 'task1',
    'init_button_states': np.array([0, 0, 0, 0]),
    'goal_button_states': np.array([1, 1, 1, 0]),
}
# Radius and half of the height, m, and where OGBench's cap of 0.017 m lies on its button.
CAP_SIZE = (0.04, 0.0044)
CAP_POSITION = (0.0, -0.0732, 0.0)
# Lower and upper bounds of the gripper's x, y and z, m, at the start and after each press.
ARM_BOUNDS = np.array([[0.35, -0.10, 0.11], [0.50, 0.10, 0.16]])
# OGBench's camera sees three rows and the whole arm; this one two rows and the fingers above them.
CAMERA_POSITION = (0.80, 0.0, 0.57)
CAMERA_ANGLE = 34.0

_FINGER_MESHES = tuple(
    f'ur5e/robotiq/{part}'
    for part in ('driver', 'coupler', 'spring_link', 'follower', 'pad', 'silicone_pad')
)
_FINGER_MATERIALS = ('ur5e/robotiq/black', 'ur5e/robotiq/pad_gray')
_HIDDEN_GROUP = 5


def make_small_puzzle(**kwargs: Any) -> gymnasium.Env:
    """Make OGBench's puzzle with four buttons and, for pixels, a cheap picture.

    Pixel observations are (height, width, 3) uint8; states are (35,) float64, as in OGBench's
    puzzles. The single-task mode (`reward_task_id=1`) has the task `TASK`.

    Args:
        **kwargs: those of `ogbench.manipspace.envs.puzzle_env.PuzzleEnv`.
    """
    from ogbench.manipspace.envs.puzzle_env import PuzzleEnv

    env = PuzzleEnv('3x3', **kwargs)
    env._num_rows, env._num_cols, env._num_buttons = ROWS, COLUMNS, ROWS * COLUMNS
    env._cur_button_states = np.zeros(env._num_buttons, int)
    env._target_button_states = np.zeros(env._num_buttons, int)
    env._arm_sampling_bounds = ARM_BOUNDS
    if env._mode == 'task':
        env.task_infos, env.num_tasks = [TASK], 1
    # OGBench builds the scene in the first reset, unless there is one.
    env._mjcf_model = env.build_mjcf_model()
    _widen_buttons(env)
    if env._ob_type == 'pixels':
        _cheapen_picture(env._mjcf_model)
    return env


def _widen_buttons(env: Any) -> None:
    """Put a wide cap on each button, which moves, collides and changes its colour with it."""
    for number, lights in enumerate(env._button_geoms_list):
        cap = env._mjcf_model.find('body', f'button_{number}').add(
            'geom',
            dclass='buttonbox_col',
            name=f'cap_{number}',
            type='cylinder',
            size=CAP_SIZE,
            pos=CAP_POSITION,
            euler=(np.pi / 2, 0, 0),
            group=0,
        )
        lights.append(cap)


def _cheapen_picture(scene: Any) -> None:
    """Move the camera, draw opaque fingers, and neither shadows nor the rest of the arm."""
    camera = scene.find('camera', 'front_pixels')
    camera.pos, camera.fovy = CAMERA_POSITION, CAMERA_ANGLE
    scene.visual.quality.offsamples = 0
    for light in scene.find_all('light'):
        light.castshadow = False
    for geom in scene.find_all('geom'):
        mesh = getattr(geom.mesh, 'full_identifier', '')
        if mesh.startswith('ur5e/') and mesh not in _FINGER_MESHES:
            geom.group = _HIDDEN_GROUP
    for material in _FINGER_MATERIALS:
        scene.find('material', material).rgba[3] = 1.0


def _register(env_id: str, **kwargs: Any) -> None:
    gymnasium.register(
        id=env_id,
        entry_point='fql.envs.small_puzzle:make_small_puzzle',
        max_episode_steps=MAX_EPISODE_STEPS,
        kwargs=kwargs,
    )


_PIXELS = {
    'ob_type': 'pixels',
    'width': FRAME_SIZE,
    'height': FRAME_SIZE,
    'visualize_info': False,
}
# As in OGBench's own single-task registrations; pass success_timing='post' for the paper's.
_SINGLE_TASK = {'reward_task_id': 1, 'success_timing': 'pre'}
_register('visual-puzzle-small-v0', **_PIXELS)
_register('puzzle-small-v0')
_register('visual-puzzle-small-singletask-v0', **_PIXELS, **_SINGLE_TASK)
_register('puzzle-small-singletask-v0', **_SINGLE_TASK)
