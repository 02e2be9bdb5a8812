"""D4RL's antmaze-v2 on today's MuJoCo: the original ant, reward, goals and terminations.

The environments of this name in gymnasium-robotics differ: their control step is half as long,
their motors are stronger, and an episode continues at the goal. Source of the facts: D4RL 1.1.

Importing this module registers them, so gymnasium finds them by 'fql.envs.d4rl_antmaze:<name>'.
"""

from typing import Any
from xml.etree import ElementTree

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv, expand_model_path

from fql.envs.tasks import ANTMAZE_MODULE, ANTMAZE_TASKS

MAZES = {
    'umaze': (
        '#####',
        '#R  #',
        '### #',
        '#G  #',
        '#####',
    ),
    'medium': (
        '########',
        '#R ##  #',
        '#  #   #',
        '##   ###',
        '#  #   #',
        '# #  # #',
        '#   # G#',
        '########',
    ),
    'large': (
        '############',
        '#R   #     #',
        '# ## # # # #',
        '#      #   #',
        '# #### ### #',
        '#  # #     #',
        '## # # # ###',
        '#  #   # G #',
        '############',
    ),
}
"""Maps for evaluation: # a wall, R where the ant starts, which is the origin, G the goal's cell.
Rows are along y, columns along x.
"""
CELL = 4.0
WALL_HEIGHT = 2.0
GOAL_RADIUS = 0.5
FRAME_SKIP = 5
TIMESTEP = 0.02
MAX_TORQUE = 30.0

Step = tuple[np.ndarray, np.float64, bool, bool, dict[str, np.float64]]


class AntMaze(MujocoEnv):
    """The ant, walls around it, and a goal that is drawn at every reset and not observed.

    Observations are positions and velocities, (29,) float64, of which the first two are x and y.
    Actions are torques, [-1, 1] for -30 to 30. The reward is 1 at the goal, where the episode ends,
    and 0 before.

    Attributes:
        goal: (2,) x and y.
    """

    metadata = {'render_modes': ['rgb_array']}  # noqa: RUF012  (as gymnasium declares it)

    def __init__(self, maze: str, **kwargs: Any) -> None:
        """Build the maze.

        Args:
            maze: one of MAZES.
            **kwargs: those of gymnasium's MujocoEnv, such as `render_mode`.
        """
        self._maze = MAZES[maze]
        self.goal = np.zeros(2)
        super().__init__(
            'ant.xml', FRAME_SKIP, spaces.Box(-np.inf, np.inf, (29,), np.float64), **kwargs
        )
        self.action_space = spaces.Box(-1, 1, (self.model.nu,), np.float32)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = mujoco.MjModel.from_xml_string(model_xml(self._maze))
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        return model, mujoco.MjData(model)

    def step(self, action: np.ndarray) -> Step:
        """Apply the torques for 0.1 s; `info['success']` says whether the goal is reached."""
        self.do_simulation(MAX_TORQUE * np.clip(action, -1, 1), self.frame_skip)
        distance = np.linalg.norm(self.data.qpos[:2] - self.goal)
        reached = bool(distance <= GOAL_RADIUS)
        value = np.float64(reached)
        return self.state_vector(), value, reached, False, {'success': value}

    def reset_model(self) -> np.ndarray:
        """Draw the goal, and a state near that of an ant at rest."""
        random = self.np_random
        # D4RL adds noise to the goal twice.
        noise = random.uniform(0, CELL / 4, 2) + random.uniform(0, 0.5, 2) * CELL / 4
        self.goal = np.maximum(positions_of('G', self._maze)[0] + noise, 0)
        self.set_state(
            self.init_qpos + random.uniform(-0.1, 0.1, self.model.nq),
            self.init_qvel + 0.1 * random.standard_normal(self.model.nv),
        )
        return self.state_vector()


def positions_of(mark: str, maze: tuple[str, ...]) -> np.ndarray:
    """(n, 2) centres (x, y) of the cells with a mark, row by row; that of R is the origin."""
    cells = np.array([list(line) for line in maze])
    rows_columns = np.argwhere(cells == mark) - np.argwhere(cells == 'R')
    return CELL * rows_columns[:, ::-1]


def model_xml(maze: tuple[str, ...]) -> str:
    """MJCF of D4RL's ant, which is gymnasium's with other motors and contacts, in a maze."""
    root = ElementTree.parse(expand_model_path('ant.xml')).getroot()
    _find(root, 'option').set('timestep', str(TIMESTEP))
    _find(root, 'default/geom').attrib.update(solref='.02 1', solimp='.8 .8 .01')
    for motor in _find(root, 'actuator'):
        motor.attrib.update(gear='1', ctrlrange=f'{-MAX_TORQUE} {MAX_TORQUE}')
    for x, y in positions_of('#', maze):
        wall = {
            'type': 'box',
            'pos': f'{x} {y} {WALL_HEIGHT / 2}',
            'size': f'{CELL / 2} {CELL / 2} {WALL_HEIGHT / 2}',
            'contype': '1',
            'conaffinity': '1',
            'rgba': '0.7 0.5 0.3 1',
        }
        ElementTree.SubElement(_find(root, 'worldbody'), 'geom', wall)
    return ElementTree.tostring(root, encoding='unicode')


def _find(root: ElementTree.Element, path: str) -> ElementTree.Element:
    element = root.find(path)
    assert element is not None, path
    return element


for _name in ANTMAZE_TASKS:
    _maze = _name.split('-')[1]
    gymnasium.register(
        id=_name,
        entry_point=f'{ANTMAZE_MODULE}:AntMaze',
        max_episode_steps=700 if _maze == 'umaze' else 1000,
        kwargs={'maze': _maze, 'render_mode': 'rgb_array'},
    )
