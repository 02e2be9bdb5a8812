"""Pictures of an environment for people. Imports MuJoCo inside: `fql.envs` stays light."""

from typing import Any

import numpy as np

GOAL_RADIUS = 0.9
GOAL_RGBA = (1.0, 0.0, 0.0, 1.0)
MIN_PIXELS = 192


def hides_goal(env: Any) -> bool:
    """Whether it is one of OGBench's mazes seen from above, whose images do not show the goal."""
    maze = env.unwrapped
    return getattr(maze, '_ob_type', '') == 'pixels' and hasattr(maze, 'cur_goal_xy')


class Painter:
    """Draws the current state of an environment, with the goal where images do not show it."""

    def __init__(self, env: Any) -> None:
        """Store the environment; the first picture opens the renderer."""
        self._env = env
        self._renderer: Any = None
        self._shape: tuple[int, ...] | None = None

    def draw(self) -> np.ndarray:
        """A picture (h, w, 3) uint8; what the environment gives if that is no array.

        A maze's picture is larger than its images and shows a red disc for the goal. Raises the
        renderer's errors.

        Raises:
            ValueError: the environment gives another array, or one of another size than before.
        """
        if not hides_goal(self._env):
            frame = self._env.render()
            if isinstance(frame, np.ndarray):
                self._check(frame)
            return frame
        import mujoco

        maze = self._env.unwrapped
        if self._renderer is None:
            scale = -(-MIN_PIXELS // min(maze.height, maze.width))
            size = (maze.height * scale, maze.width * scale)
            self._renderer = mujoco.Renderer(maze.model, *size)
        self._renderer.update_scene(maze.data, camera=maze.custom_camera)
        scene = self._renderer.scene
        disc = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(
            disc,
            mujoco.mjtGeom.mjGEOM_CYLINDER,
            np.array([GOAL_RADIUS, 0.05, 0.0]),
            np.array([*maze.cur_goal_xy, 0.05]),
            np.eye(3).ravel(),
            np.array(GOAL_RGBA, np.float32),
        )
        disc.specular, disc.emission = 0.0, 0.3
        scene.ngeom += 1
        return self._renderer.render()

    def _check(self, frame: np.ndarray) -> None:
        self._shape = self._shape or frame.shape
        if frame.dtype != np.uint8 or frame.shape[2:] != (3,) or frame.size == 0:
            raise ValueError(f'its picture is {frame.dtype} {frame.shape}, not uint8 (h, w, 3)')
        if frame.shape != self._shape:
            raise ValueError(f'its pictures are {self._shape}, then {frame.shape}')
