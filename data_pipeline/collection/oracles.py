"""Episodes of OGBench's scripted oracles, in the rows of OGBench's files.

Manipulation, as in OGBench's `data_gen_scripts/generate_manipspace.py`: an oracle brings one object
after another to its random target, until the episode's steps are used up.

    play      follows a plan made in advance, with temporally correlated noise
    noisy     reacts to the state, with Gaussian noise and some uniformly random actions

The point maze, as in `generate_locomaze.py`, always with Gaussian noise on the ball's direction:

    navigate  goes to a random cell that is not a hallway, then to the next, and so on
    stitch    goes to a cell four steps away, and stays
    explore   takes a random direction every ten steps
    roam      as navigate, with goals in all free cells; for the quickstart, not in OGBench

Both scripts are by Park et al., ICLR 2025, arXiv 2410.20092. Functions here import MuJoCo, and are
for processes that never import TensorFlow.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.collection.recipes import Recipe
from data_pipeline.environment import (
    choose_opengl,
    construct,
    is_opengl_fault,
    render_in_one_thread,
)
from data_pipeline.errors import DataError, first_line

STITCH_STEPS = 4
EXPLORE_STEPS = 10
NOISE_SMOOTHING = 0.5
MIN_NORM = 0.4
NOISE_SCALES = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
"""Scales of position, yaw and gripper in the noise of 'noisy'."""
P_STACK = {1: (0.0, 0.0), 2: (0.0, 0.25), 3: (0.05, 0.35), 4: (0.1, 0.5)}
"""The range of an episode's probability that a target is a stack, by the number of cubes."""

_MAZE_PIXELS = {'ob_type': 'pixels', 'render_mode': 'rgb_array', 'width': 64, 'height': 64}

Arrays = dict[str, np.ndarray]
Cell = tuple[int, int]


def make_environment(recipe: Recipe) -> Any:
    """Make the environment to collect from, without a limit on its steps.

    OGBench registers no maze with pixels: `visual-pointmaze-medium-v0` is its pointmaze-medium-v0
    seen from above.

    Raises:
        DataError: it cannot be made or rendered, or no oracle knows it.
    """
    render_in_one_thread()  # The intended use is one worker per core.
    choose_opengl(is_rendering=recipe.is_visual)
    env_id, kwargs = recipe.env_id, recipe.env_kwargs
    if not recipe.is_maze:
        kwargs = {**kwargs, 'mode': 'data_collection'}
    elif env_id.startswith('visual-'):
        env_id, kwargs = env_id.removeprefix('visual-'), {**_MAZE_PIXELS, **kwargs}
    try:
        env = construct(env_id, max_episode_steps=sys.maxsize, terminate_at_goal=False, **kwargs)
        env.reset(seed=0)  # Draws the first frame, which fails without OpenGL.
    except Exception as error:
        kind = type(error).__name__
        fault = f'cannot make environment {recipe.env_id!r}: {kind}: {first_line(error)}'
        if is_opengl_fault(error):
            fault += '; rendering needs OpenGL: apt-get install libegl1 libgl1'
        raise DataError(fault) from error
    if not hasattr(env.unwrapped, 'get_oracle_subgoal' if recipe.is_maze else 'set_new_target'):
        raise DataError(f'the oracle does not know environment {recipe.env_id}')
    if recipe.is_maze:
        # OGBench writes the maze's XML to a temporary file and leaves it.
        Path(env.unwrapped.fullpath).unlink(missing_ok=True)
    return env


def run_episode(
    env: Any, recipe: Recipe, rng: np.random.Generator, on_rows: Callable[[int], None]
) -> Arrays:
    """One episode's arrays, of n = episode_steps + 1 rows.

    Args:
        env: from `make_environment`.
        recipe: what to do.
        rng: together with the recipe, determines the episode.
        on_rows: called with the number of rows that were added; negative for the rows of a
            discarded episode (see `ManipulationOracle.is_sound`), which is started again.

    Returns:
        observations (n, h, w, 3) uint8 or (n, d) float32, actions (n, a) float32 in [-1, 1],
        terminals (n,) bool, qpos (n, nq) and qvel (n, nv) float32, and button_states (n, b) int64
        where there are buttons. A row holds a state and the action taken there; the action of the
        last row, whose terminals is 1, is not executed.
    """
    while True:
        oracle: _Oracle = (MazeOracle if recipe.is_maze else ManipulationOracle)(env, recipe, rng)
        arrays = _collect_rows(env, oracle, recipe.episode_steps + 1, rng, on_rows)
        if oracle.is_sound(arrays):
            return arrays
        on_rows(-len(arrays['terminals']))


class _Oracle(Protocol):
    """Acts in one episode."""

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the environment; return its first observation and info."""

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action to take, (a,) float32 in [-1, 1]."""

    def after_step(self, info: dict[str, Any]) -> None:
        """Choose a new target when one is due."""

    def is_sound(self, arrays: Arrays) -> bool:
        """Whether the episode may be kept."""


class MazeOracle:
    """Moves the ball of the point maze.

    Do not change the order of its draws: the quickstart's data, which users keep, depend on it.
    """

    def __init__(self, env: Any, recipe: Recipe, rng: np.random.Generator) -> None:
        self._env, self._maze, self._recipe, self._rng = env, env.unwrapped, recipe, rng
        self._free_cells = [(int(i), int(j)) for i, j in np.argwhere(self._maze.maze_map == 0)]
        self._goal_cells = (
            self._free_cells if recipe.dataset_type == 'roam' else vertex_cells(self._maze.maze_map)
        )
        self._step = 0
        self._direction = np.zeros(2)

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Place ball and goal in random cells."""
        self._env.action_space.seed(seed)  # The environment's reset draws from this generator.
        start = self._draw(self._free_cells)
        stitch = self._recipe.dataset_type == 'stitch'
        goal = self._draw(self._cells_near(start) if stitch else self._goal_cells)
        return self._env.reset(
            seed=seed, options={'task_info': {'init_ij': start, 'goal_ij': goal}}
        )

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Move along the shortest path to the goal or, for 'explore', in the random direction."""
        if self._recipe.dataset_type != 'explore':
            self._direction = direction_to_goal(self._maze)
        elif self._step % EXPLORE_STEPS == 0:
            direction = self._rng.standard_normal(2)
            self._direction = direction / (np.linalg.norm(direction) + 1e-6)
        self._step += 1
        action = self._direction + self._rng.normal(0, self._recipe.noise, 2)
        return np.clip(action, -1, 1).astype(np.float32)

    def after_step(self, info: dict[str, Any]) -> None:
        """Draw the next goal when this one is reached."""
        if not info['success'] or self._recipe.dataset_type not in ('navigate', 'roam'):
            return
        xy = self._maze.ij_to_xy(self._draw(self._goal_cells))
        # With a cell, `set_goal` would write NaN into the model of a maze with states.
        self._maze.set_goal(goal_xy=self._maze.add_noise(xy) if self._noisy_goals else xy)

    def is_sound(self, arrays: Arrays) -> bool:
        """Always."""
        return True

    @property
    def _noisy_goals(self) -> bool:
        return self._maze._add_noise_to_goal

    def _draw(self, cells: Sequence[Cell]) -> Cell:
        return cells[int(self._rng.integers(len(cells)))]

    def _cells_near(self, cell: Cell) -> list[Cell]:
        """The cells STITCH_STEPS away, or the cell itself if there are none."""
        xy = self._maze.ij_to_xy(cell)
        _, distances = self._maze.get_oracle_subgoal(xy, xy)
        near = [(int(i), int(j)) for i, j in np.argwhere(distances == STITCH_STEPS)]
        return near or [cell]


def direction_to_goal(maze: Any) -> np.ndarray:
    """The unit vector along the shortest path to the maze's goal, (2,) float64."""
    xy = maze.get_xy()
    subgoal_xy, _ = maze.get_oracle_subgoal(xy, maze.cur_goal_xy)
    return (subgoal_xy - xy) / (np.linalg.norm(subgoal_xy - xy) + 1e-6)


def vertex_cells(maze_map: np.ndarray) -> list[Cell]:
    """The free cells except hallways, which are free on exactly two opposite sides."""
    cells = []
    for i, j in np.argwhere(maze_map == 0):
        across = (maze_map[i, j - 1], maze_map[i, j + 1])
        along = (maze_map[i - 1, j], maze_map[i + 1, j])
        if (along, across) not in (((0, 0), (1, 1)), ((1, 1), (0, 0))):
            cells.append((int(i), int(j)))
    return cells


class ManipulationOracle:
    """One of OGBench's oracles for each kind of object; they draw from NumPy's global state."""

    def __init__(self, env: Any, recipe: Recipe, rng: np.random.Generator) -> None:
        self._env, self._arm, self._recipe, self._rng = env, env.unwrapped, recipe, rng
        self._agents = _make_agents(env, recipe)
        self._agent: Any = None
        self._p_stack = rng.uniform(*P_STACK[getattr(self._arm, '_num_cubes', 1)])
        self._noise = rng.uniform(0, recipe.noise) * NOISE_SCALES

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Place the objects and the first target at random."""
        if _is_scene(self._arm):
            _forget_targets(self._arm)
        observation, info = self._env.reset(seed=seed)
        self._choose_agent(info)
        return observation, info

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The oracle's action or, with probability p_random_action, a uniformly random one."""
        if self._rng.random() < self._recipe.p_random_action:
            return self._rng.uniform(-1, 1, len(NOISE_SCALES)).astype(np.float32)
        action = np.array(self._agent.select_action(observation, info))
        if self._recipe.dataset_type == 'noisy':
            action += self._rng.normal(0, self._noise)
        return np.clip(action, -1, 1).astype(np.float32)

    def after_step(self, info: dict[str, Any]) -> None:
        """Set a new target when the oracle has finished the current one."""
        if self._agent.done:
            # With `return_info`, pixel environments would render a frame that is not used.
            self._arm.set_new_target(return_info=False, p_stack=self._p_stack)
            self._choose_agent(self._arm.get_reset_info())

    def is_sound(self, arrays: Arrays) -> bool:
        """For 'scene', whether its cube stayed in sight or in the drawer, as OGBench requires.

        Rarely, the drawer's lock flings the cube away.
        """
        if not _is_scene(self._arm):
            return True
        y, z = arrays['qpos'][:, 15], arrays['qpos'][:, 16]
        is_in_drawer = (z >= 0.06) & (z <= 0.08)
        return bool((y < 0.29).all() and ((y > -0.3) | is_in_drawer).all())

    def _choose_agent(self, info: dict[str, Any]) -> None:
        self._agent = self._agents[info['privileged/target_task']]
        self._agent.reset(None, info)


def _make_agents(env: Any, recipe: Recipe) -> dict[str, Any]:
    """OGBench's oracles by task."""
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    settings: dict[str, Any]
    if recipe.dataset_type == 'play':
        settings = {'env': env, 'noise': recipe.noise, 'noise_smoothing': NOISE_SMOOTHING}
        cube, button = CubePlanOracle, ButtonPlanOracle
        drawer, window = DrawerPlanOracle, WindowPlanOracle
    else:
        settings = {'env': env, 'min_norm': MIN_NORM}
        cube, button = CubeMarkovOracle, ButtonMarkovOracle
        drawer, window = DrawerMarkovOracle, WindowMarkovOracle
    is_puzzle = not hasattr(env.unwrapped, '_num_cubes')
    return {
        'cube': cube(**settings),
        'button': button(gripper_always_closed=is_puzzle, **settings),
        'drawer': drawer(**settings),
        'window': window(**settings),
    }


def _is_scene(arm: Any) -> bool:
    return hasattr(arm, '_num_cubes') and hasattr(arm, '_num_buttons')


def _forget_targets(scene: Any) -> None:
    """Remove the targets of the previous episode, as in a new environment.

    The reset sets only one object's target. After a change of target, reacting oracles take one
    step with the old info, and so with the other objects' old targets.
    """
    scene._target_button = 0
    scene._target_drawer_pos = scene._target_window_pos = 0.0
    scene._target_button_states[:] = 0
    scene.model.site('drawer_handle_center_target').pos[1] = 0.0
    scene.model.site('window_handle_center_target').pos[0] = 0.0


def _collect_rows(
    env: Any, oracle: _Oracle, rows: int, rng: np.random.Generator, on_rows: Callable[[int], None]
) -> Arrays:
    seed = int(rng.integers(2**32))
    np.random.seed(seed)  # OGBench's environments and oracles also draw from the global state.
    observation, info = oracle.reset(seed)
    columns: dict[str, list[Any]] = {
        name: [] for name in ('observations', 'actions', 'terminals', 'qpos', 'qvel')
    }
    if 'prev_button_states' in info:
        columns['button_states'] = []
    for row in range(rows):
        action = oracle.act(observation, info)
        next_observation, _, _, _, info = env.step(action)
        columns['observations'].append(observation)
        columns['actions'].append(action)
        columns['terminals'].append(row == rows - 1)
        for name in ('qpos', 'qvel', 'button_states'):
            if name in columns:
                columns[name].append(info[f'prev_{name}'])
        oracle.after_step(info)
        observation = next_observation
        on_rows(1)
    return {name: _as_array(name, values) for name, values in columns.items()}


def _as_array(name: str, values: list[Any]) -> np.ndarray:
    """The column in OGBench's dtype."""
    array = np.array(values)
    if name == 'button_states':
        return array.astype(np.int64)
    return array.astype(np.float32) if array.dtype == np.float64 else array
