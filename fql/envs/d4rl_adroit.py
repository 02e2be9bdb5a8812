"""D4RL's Adroit tasks on today's MuJoCo: a hand opens a door, hammers, turns a pen, moves a ball.

The models are gymnasium-robotics' files, which equal D4RL's. Its rewards and terminations do not:
releases 1.2.1 to 1.4.2 reward the hand's distance from the object in place of its nearness, and no
episode ends when the pen is dropped. So this module states everything except the models. Source of
the facts: D4RL 1.1.

Importing this module registers them, so gymnasium finds them by 'fql.envs.d4rl_adroit:<name>'.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

from fql.envs.tasks import ADROIT_MODULE, ADROIT_TASKS
from fql.errors import FQLError

FRAME_SKIP = 5
DROPPED = 0.075
"""Height below which a pen has fallen."""
LIFTED = 0.04
"""Height above which an object has left the table."""

Step = tuple[np.ndarray, np.float64, bool, bool, dict[str, np.float64]]


class Outcome(NamedTuple):
    """Outcome of a step."""

    reward: float
    success: bool
    terminated: bool = False


class Adroit(MujocoEnv):
    """The hand and an object. Actions are the joints' target positions, from -1 to 1."""

    metadata = {'render_modes': ['rgb_array']}  # noqa: RUF012  (as gymnasium declares it)
    model_file: str
    observation_size: int

    def __init__(self, **kwargs: Any) -> None:
        """Load the model.

        Args:
            **kwargs: those of gymnasium's MujocoEnv, such as `render_mode`.

        Raises:
            FQLError: gymnasium-robotics is not installed.
        """
        space = spaces.Box(-np.inf, np.inf, (self.observation_size,), np.float64)
        super().__init__(str(models_folder() / self.model_file), FRAME_SKIP, space, **kwargs)
        self.action_space = spaces.Box(-1, 1, (self.model.nu,), np.float32)
        low, high = self.model.actuator_ctrlrange.T
        self._centre, self._half_range = (high + low) / 2, (high - low) / 2
        # The gains of the wrist and the fingers differ from those in the files.
        for first, last, gain in (('A_WRJ1', 'A_WRJ0', 10), ('A_FFJ3', 'A_THJ0', 1)):
            joints = slice(self.model.actuator(first).id, self.model.actuator(last).id + 1)
            self.model.actuator_gainprm[joints, :3] = [gain, 0, 0]
            self.model.actuator_biasprm[joints, :3] = [0, -gain, 0]

    def step(self, action: np.ndarray) -> Step:
        """Move the hand; `info['success']` says whether this step reaches the goal."""
        self.do_simulation(
            self._centre + np.clip(action, -1, 1) * self._half_range, self.frame_skip
        )
        reward, success, terminated = self.outcome()
        info = {'success': np.float64(success)}
        return self.observation(), np.float64(reward), bool(terminated), False, info

    def reset_model(self) -> np.ndarray:
        """Place the object and the goal at random."""
        self.place()
        self.set_state(self.init_qpos, self.init_qvel)
        return self.observation()

    def site(self, name: str) -> np.ndarray:
        """(3,) position of a site of the model."""
        return self.data.site(name).xpos.copy()

    def body(self, name: str) -> np.ndarray:
        """(3,) position of a body of the model."""
        return self.data.body(name).xpos.copy()

    def observation(self) -> np.ndarray:
        """(observation_size,) float64: joints, positions of hand, object and goal."""
        raise NotImplementedError

    def outcome(self) -> Outcome:
        """Outcome of the current state."""
        raise NotImplementedError

    def place(self) -> None:
        """Draw where object and goal are."""
        raise NotImplementedError


class Door(Adroit):
    """Turn the latch and swing the door open."""

    model_file = 'adroit_door.xml'
    observation_size = 39

    def observation(self) -> np.ndarray:
        """Joints of the hand, latch, hinge, palm, handle, their difference, whether it is open."""
        joints = self.data.qpos
        hinge = self.data.joint('door_hinge').qpos
        palm, handle = self.site('S_grasp'), self.site('S_handle')
        is_open = [1.0 if hinge[0] > 1 else -1.0]
        return np.concatenate(
            [joints[1:-2], joints[-1:], hinge, palm, handle, palm - handle, is_open]
        )

    def outcome(self) -> Outcome:
        """Nearness of the palm to the handle, then how far the door is open."""
        hinge = self.data.joint('door_hinge').qpos[0]
        reward = -0.1 * _distance(self.site('S_grasp'), self.site('S_handle'))
        reward -= 0.1 * (hinge - 1.57) ** 2
        reward -= 1e-5 * np.sum(self.data.qvel**2)
        reward += 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        return Outcome(reward, hinge >= 1.35)

    def place(self) -> None:
        """Move the door's frame."""
        self.model.body('frame').pos = self.np_random.uniform(
            (-0.3, 0.25, 0.252), (-0.2, 0.35, 0.35)
        )


class Hammer(Adroit):
    """Drive a nail into a board."""

    model_file = 'adroit_hammer.xml'
    observation_size = 46

    def observation(self) -> np.ndarray:
        """Joints of the hand, velocity of the hammer, palm, hammer and its angles, nail, impact."""
        return np.concatenate(
            [
                self.data.qpos[:-6],
                np.clip(self.data.qvel[-6:], -1, 1),
                self.site('S_grasp'),
                self.body('Object'),
                euler_angles(self.data.body('Object').xmat.reshape(3, 3)),
                self.site('S_target'),
                np.clip(self.data.sensor('S_nail').data, -1, 1),
            ]
        )

    def outcome(self) -> Outcome:
        """Nearness of the palm to the hammer, of its head to the nail, of the nail to its goal."""
        hammer, head, nail = self.body('Object'), self.site('tool'), self.site('S_target')
        depth_left = _distance(nail, self.site('nail_goal'))
        reward = -0.1 * _distance(self.site('S_grasp'), hammer)
        reward -= _distance(head, nail) + 10 * depth_left
        reward -= 1e-2 * float(np.linalg.norm(self.data.qvel))
        reward += 2 * (hammer[2] > LIFTED and head[2] > LIFTED)
        reward += 25 * (depth_left < 0.02) + 75 * (depth_left < 0.01)
        return Outcome(reward, depth_left < 0.01)

    def place(self) -> None:
        """Move the board up or down."""
        self.model.body('nail_board').pos[2] = self.np_random.uniform(0.1, 0.25)


class Pen(Adroit):
    """Turn a pen into the direction of another; the episode ends when it falls."""

    model_file = 'adroit_pen.xml'
    observation_size = 45

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) unit vectors along the pen and along its target."""
        pen = self.site('object_top') - self.site('object_bottom')
        target = self.site('target_top') - self.site('target_bottom')
        return pen / np.linalg.norm(pen), target / np.linalg.norm(target)

    def observation(self) -> np.ndarray:
        """Joints of the hand, the pen and its velocity, both directions, remaining differences."""
        pen, goal = self.body('Object'), self.site('eps_ball')
        direction, wanted = self.directions()
        return np.concatenate(
            [
                *(self.data.qpos[:-6], pen, self.data.qvel[-6:]),
                *(direction, wanted, pen - goal, direction - wanted),
            ]
        )

    def outcome(self) -> Outcome:
        """Nearness of the pen, and the cosine between the directions."""
        pen = self.body('Object')
        distance = _distance(pen, self.site('eps_ball'))
        direction, wanted = self.directions()
        cosine = direction @ wanted
        is_near, is_dropped = distance < 0.075, pen[2] < DROPPED
        reward = cosine - distance - 5 * is_dropped
        reward += 10 * (is_near and cosine > 0.9) + 50 * (is_near and cosine > 0.95)
        return Outcome(reward, is_near and cosine > 0.95, is_dropped)

    def place(self) -> None:
        """Turn the target about x and y."""
        angles = np.append(self.np_random.uniform(-1, 1, 2), 0)
        mujoco.mju_euler2Quat(self.model.body('target').quat, angles, 'xyz')


class Relocate(Adroit):
    """Carry a ball to a target in the air."""

    model_file = 'adroit_relocate.xml'
    observation_size = 39

    def observation(self) -> np.ndarray:
        """Joints of the hand, and the differences between palm, ball and target."""
        palm, ball, target = self.site('S_grasp'), self.body('Object'), self.site('target')
        return np.concatenate([self.data.qpos[:-6], palm - ball, palm - target, ball - target])

    def outcome(self) -> Outcome:
        """Nearness of the palm to the ball; once it is lifted, of both to the target."""
        palm, ball, target = self.site('S_grasp'), self.body('Object'), self.site('target')
        left = _distance(ball, target)
        reward = -0.1 * _distance(palm, ball)
        if ball[2] > LIFTED:
            reward += 1 - 0.5 * _distance(palm, target) - 0.5 * left
        reward += 10 * (left < 0.1) + 20 * (left < 0.05)
        return Outcome(reward, left < 0.1)

    def place(self) -> None:
        """Move the ball on the table, and the target above it."""
        random = self.np_random
        self.model.body('Object').pos[:2] = random.uniform((-0.15, -0.15), (0.15, 0.3))
        self.model.site('target').pos = random.uniform((-0.2, -0.2, 0.15), (0.2, 0.2, 0.35))


def models_folder() -> Path:
    """Where gymnasium-robotics keeps the models; the package itself is not imported.

    Raises:
        FQLError: it is not installed.
    """
    package = importlib.util.find_spec('gymnasium_robotics')
    if package is None or package.origin is None:
        raise FQLError("Adroit needs gymnasium-robotics: pip install 'fql-pixels[d4rl]'")
    return Path(package.origin).parent / 'envs' / 'assets' / 'adroit_hand'


def euler_angles(matrix: np.ndarray) -> np.ndarray:
    """(3,) angles about x, y and z, in turn about the axes turned so far, of a rotation (3, 3)."""
    cosine = np.hypot(matrix[1, 2], matrix[2, 2])
    about_y = np.arctan2(matrix[0, 2], cosine)
    if cosine < 4 * np.finfo(np.float64).eps:  # Along z: only the sum of the others is known.
        return np.array([0, about_y, np.arctan2(matrix[1, 0], matrix[1, 1])])
    about_x = np.arctan2(-matrix[1, 2], matrix[2, 2])
    return np.array([about_x, about_y, np.arctan2(-matrix[0, 1], matrix[0, 0])])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


for _task in ADROIT_TASKS:
    _name = _task.split('-')[0]
    gymnasium.register(
        id=_task,
        entry_point=f'{ADROIT_MODULE}:{_name.capitalize()}',
        max_episode_steps=100 if _name == 'pen' else 200,
        kwargs={'render_mode': 'rgb_array'},
    )
