"""The oracles' episodes: their format, OGBench's protocol, and that they resemble real data."""

import dataclasses
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.collection import oracles
from data_pipeline.collection.collect import collect
from data_pipeline.collection.oracles import (
    ManipulationOracle,
    MazeOracle,
    direction_to_goal,
    vertex_cells,
)
from data_pipeline.collection.recipes import (
    MANIPULATION_ENVS,
    MAZE_ENVS,
    Recipe,
    dataset_name,
    ogbench_recipe,
)
from data_pipeline.errors import DataError

ARM_QPOS, ARM_QVEL, CUBE_QPOS, CUBE_QVEL = 14, 14, 7, 6


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def shorten(env_id, dataset_type, episode_steps, **changes):
    recipe, _ = ogbench_recipe(env_id, dataset_type)
    return dataclasses.replace(recipe, episode_steps=episode_steps, **changes)


# Environments without pixels, in spawned processes


@pytest.mark.parametrize(
    ('env_id', 'dataset_type', 'qpos', 'buttons'),
    [
        ('cube-double-v0', 'noisy', ARM_QPOS + 2 * CUBE_QPOS, None),
        ('puzzle-3x3-v0', 'play', ARM_QPOS + 9, 9),
        ('scene-v0', 'play', ARM_QPOS + CUBE_QPOS + 4, 2),
        ('pointmaze-large-v0', 'stitch', 2, None),
    ],
)
def test_files_have_ogbenchs_format(env_id, dataset_type, qpos, buttons, tmp_path):
    recipe = shorten(env_id, dataset_type, 20)
    arrays = load(collect(recipe, tmp_path / 'data.npz', episodes=2, workers=1))
    is_maze = env_id.startswith('pointmaze')
    assert arrays['observations'].dtype == arrays['actions'].dtype == np.float32
    assert arrays['qpos'].dtype == arrays['qvel'].dtype == np.float32
    assert arrays['actions'].shape == (42, 2 if is_maze else 5)
    assert arrays['qpos'].shape == (42, qpos)
    assert np.flatnonzero(arrays['terminals']).tolist() == [20, 41]
    assert arrays['terminals'].dtype == bool
    assert np.abs(arrays['actions']).max() <= 1
    if buttons is None:
        assert set(arrays) == {'observations', 'actions', 'terminals', 'qpos', 'qvel'}
    else:
        assert arrays['button_states'].shape == (42, buttons)
        assert arrays['button_states'].dtype == np.int64
    # An observation begins like qpos: with the arm's joints, or the ball's position.
    width = 2 if is_maze else 6
    np.testing.assert_array_equal(arrays['observations'][:, :width], arrays['qpos'][:, :width])
    assert len(np.unique(arrays['qpos'][[0, 21]], axis=0)) == 2


@pytest.fixture(scope='module')
def noisy_scene(tmp_path_factory):
    """Long enough for some targets of each kind."""
    recipe = shorten('scene-v0', 'noisy', 200)
    path = tmp_path_factory.mktemp('scene') / 'scene.npz'
    return recipe, collect(recipe, path, episodes=4, workers=2)


@pytest.mark.long
def test_an_episode_does_not_depend_on_those_before_it(noisy_scene, tmp_path):
    recipe, path = noisy_scene
    alone = collect(recipe, tmp_path / 'scene.npz', episodes=4, workers=1)
    assert alone.read_bytes() == path.read_bytes()


OTHER_TARGETS = """
import dataclasses
import numpy as np
from data_pipeline.collection.oracles import make_environment, run_episode
from data_pipeline.collection.recipes import ogbench_recipe

recipe = dataclasses.replace(ogbench_recipe('scene-v0', 'noisy')[0], episode_steps=200)
env = make_environment(recipe)
scene, sites = env.unwrapped, env.unwrapped.model.site
actions = []
for button, drawer, window in ((0, 0.0, 0.0), (1, -0.16, 0.2)):
    scene._target_button = button
    scene._target_button_states[:] = button
    scene._target_drawer_pos = sites('drawer_handle_center_target').pos[1] = drawer
    scene._target_window_pos = sites('window_handle_center_target').pos[0] = window
    rng = np.random.default_rng(0)
    actions.append(run_episode(env, recipe, rng, lambda rows: None)['actions'])
np.testing.assert_array_equal(*actions)
"""


@pytest.mark.long
def test_an_episode_does_not_depend_on_the_targets_that_another_left(run_python):
    done = run_python(OTHER_TARGETS)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_noisy_oracle_manipulates_the_scene(noisy_scene):
    arrays = load(noisy_scene[1])
    valid = np.flatnonzero(~arrays['terminals'])
    presses = (arrays['button_states'][valid + 1] != arrays['button_states'][valid]).any(axis=1)
    assert presses.sum() >= 4
    # A button is pressed with the gripper closed; only in puzzles it stays closed.
    gripper = arrays['qpos'][:, 6]
    before, after = zip(
        *((gripper[row], gripper[row : row + 25].min()) for row in valid[presses]), strict=True
    )
    assert np.mean(before) > 0.5
    assert np.mean(after) < 0.2
    drawer_and_window = arrays['qpos'][:, -2:].reshape(4, 201, 2)
    assert np.ptp(drawer_and_window, axis=1).max() > 0.05


@pytest.mark.long
def test_play_data_resemble_the_real_file(real_source, tmp_path):
    """18 real trajectories against 4 without their pictures."""
    real = load(real_source)
    recipe, _ = ogbench_recipe('cube-single-v0')
    ours = load(collect(recipe, tmp_path / 'cube.npz', episodes=4, workers=2))
    assert set(ours) == set(real)
    for name in ('actions', 'terminals', 'qpos', 'qvel'):
        assert ours[name].dtype == real[name].dtype
        assert ours[name].shape[1:] == real[name].shape[1:]
    np.testing.assert_array_equal(
        np.flatnonzero(ours['terminals']), np.flatnonzero(real['terminals'])[:4]
    )
    statistics = [action_statistics(arrays) for arrays in (real, ours)]
    for name, value in statistics[0].items():
        np.testing.assert_allclose(statistics[1][name], value, atol=0.06, err_msg=name)
    # About eleven grasps in a trajectory.
    lifts = [np.diff(arrays['qpos'][:, 16] > 0.04).sum() / 2 for arrays in (real, ours)]
    assert lifts[0] / 18 == pytest.approx(lifts[1] / 4, rel=0.15)


def action_statistics(arrays):
    actions = arrays['actions']
    valid = np.flatnonzero(~arrays['terminals'])
    return {
        'mean': actions.mean(axis=0),
        'std': actions.std(axis=0),
        'share of bounds': (np.abs(actions) == 1).mean(axis=0),
        'correlation with the next': [
            np.corrcoef(actions[valid, i], actions[valid + 1, i])[0, 1] for i in range(5)
        ],
    }


RENDER = """
import os, sys
os.environ['MUJOCO_GL'] = 'egl'
import gymnasium, numpy as np, ogbench
data = np.load(sys.argv[1])
env = gymnasium.make(
    'visual-puzzle-3x3-v0', disable_env_checker=True, mode='data_collection', width=48, height=48
).unwrapped
env.reset(seed=0)
for row in (0, len(data['qpos']) - 1):
    env.set_state(*(data[name][row] for name in ('qpos', 'qvel', 'button_states')))
    picture = env.render().astype(int)
    print(*(np.abs(picture - other).mean() for other in data['observations'][[row, row - 1]]))
"""


@pytest.mark.long
def test_pixels_show_the_state_beside_them(opengl, tmp_path):
    recipe = shorten(
        'visual-puzzle-3x3-v0', 'play', 3, env_kwargs={'width': 48, 'height': 48}, seed=2
    )
    path = collect(recipe, tmp_path / 'puzzle.npz', episodes=1, workers=1)
    assert load(path)['observations'].shape == (4, 48, 48, 3)
    printed = subprocess.check_output([sys.executable, '-c', RENDER, str(path)], text=True)
    for line in printed.splitlines():
        own, other = map(float, line.split())
        # OGBench draws the bodies where they were 2 ms before the end of the step.
        assert own < 0.5
        assert other > 2 * own


def test_an_environment_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / 'own_envs.py').write_text(
        'import gymnasium\n'
        'gymnasium.register(\n'
        '    id="slow-cube-v0",\n'
        '    entry_point="ogbench.manipspace.envs.cube_env:CubeEnv",\n'
        '    kwargs={"env_type": "single"},\n'
        ')\n'
        'gymnasium.register(id="no-cube-v0", entry_point="own_envs:make_cart_pole")\n'
        'def make_cart_pole(mode, terminate_at_goal):\n'
        '    return gymnasium.make("CartPole-v1")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe('own_envs:slow-cube-v0', 'play', 2, 0.1, env_kwargs={'control_timestep': 0.1})
    arrays = load(collect(recipe, tmp_path / 'own.npz', episodes=1, workers=1))
    assert arrays['qpos'].shape == (3, ARM_QPOS + CUBE_QPOS)
    no_arm = Recipe('own_envs:no-cube-v0', 'play', 2, 0.1)
    with pytest.raises(DataError, match='the oracle does not know environment'):
        collect(no_arm, tmp_path / 'no.npz', episodes=1, workers=1)


# The maze oracle on a maze made for these tests

MAZE_MAP = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ]
)
CORNERS_AND_ENDS = [(1, 1), (1, 5), (2, 5), (3, 1)]


class Maze:
    """A path of cells from (3, 1) by (1, 1) and (1, 5) to (2, 5); a cell's place is its index."""

    maze_map = MAZE_MAP
    cur_goal_xy = (1.0, 3.0)
    _add_noise_to_goal = False

    def __init__(self):
        self.action_space = SimpleNamespace(seed=lambda seed: None)
        self.unwrapped = self
        self.task = None

    def reset(self, seed, options):
        self.task = options['task_info']
        return None, {}

    def get_xy(self):
        return np.array([1.0, 1.0])

    def ij_to_xy(self, ij):
        return ij

    def set_goal(self, goal_xy):
        self.cur_goal_xy = goal_xy

    def get_oracle_subgoal(self, start, goal):
        path = [(3, 1), (2, 1), *((1, j) for j in range(1, 6)), (2, 5)]
        distances = np.full(MAZE_MAP.shape, -1)
        for index, cell in enumerate(path):
            distances[cell] = abs(index - path.index(tuple(map(int, goal))))
        return np.array([1.0, 2.0]), distances


def maze_oracle(dataset_type, noise=0.0, seed=0):
    maze = Maze()
    recipe = Recipe('pointmaze-v0', dataset_type, 10, noise)
    return maze, MazeOracle(maze, recipe, np.random.default_rng(seed))


def test_hallways_are_no_goals():
    assert vertex_cells(MAZE_MAP) == CORNERS_AND_ENDS


@pytest.mark.parametrize('dataset_type', ['navigate', 'roam'])
def test_goals_are_drawn_again_when_they_are_reached(dataset_type):
    goals, starts, later = set(), set(), set()
    for seed in range(100):
        maze, oracle = maze_oracle(dataset_type, seed=seed)
        oracle.reset(0)
        starts.add(maze.task['init_ij'])
        goals.add(maze.task['goal_ij'])
        oracle.after_step({'success': 0.0})
        assert maze.cur_goal_xy == Maze.cur_goal_xy
        oracle.after_step({'success': 1.0})
        later.add(maze.cur_goal_xy)
    everywhere = {(int(i), int(j)) for i, j in np.argwhere(MAZE_MAP == 0)}
    assert starts == everywhere
    assert goals == later == (everywhere if dataset_type == 'roam' else set(CORNERS_AND_ENDS))


def test_stitch_goes_four_steps_and_stays():
    ways = set()
    for seed in range(100):
        maze, oracle = maze_oracle('stitch', seed=seed)
        oracle.reset(0)
        ways.add((maze.task['init_ij'], maze.task['goal_ij']))
        oracle.after_step({'success': 1.0})
        assert maze.cur_goal_xy == Maze.cur_goal_xy
    assert {goal for start, goal in ways if start == (1, 1)} == {(1, 5)}
    assert {goal for start, goal in ways if start == (3, 1)} == {(1, 3)}
    assert len({start for start, _ in ways}) == 8


def test_explore_changes_its_direction_every_ten_steps():
    _, oracle = maze_oracle('explore')
    oracle.reset(0)
    actions = np.stack([oracle.act(None, {}) for _ in range(40)])
    np.testing.assert_allclose(np.linalg.norm(actions, axis=1), 1, atol=1e-5)
    changes = np.flatnonzero(np.abs(np.diff(actions, axis=0)).max(axis=1) > 1e-6)
    assert changes.tolist() == [9, 19, 29]


def test_the_maze_oracle_goes_to_the_subgoal_with_noise():
    np.testing.assert_allclose(direction_to_goal(Maze()), [0, 1], atol=1e-6)
    _, oracle = maze_oracle('navigate', noise=0.5)
    noisy = np.stack([oracle.act(None, {}) for _ in range(500)])
    assert noisy.dtype == np.float32
    assert np.abs(noisy).max() <= 1
    assert (noisy[:, 1] == 1).mean() == pytest.approx(0.5, abs=0.1)
    assert noisy[:, 0].std() == pytest.approx(0.49, abs=0.06)


# The manipulation oracle with agents made for these tests


class Agent:
    """Is done after three actions, each of them 0.1."""

    def __init__(self):
        self.targets, self.actions = [], 0

    @property
    def done(self):
        return self.actions == 3

    def reset(self, observation, info):
        self.targets.append(info['target'])
        self.actions = 0

    def select_action(self, observation, info):
        self.actions += 1
        return np.full(5, 0.1)


class Arm:
    """Its targets are numbered; cubes and buttons take turns."""

    def __init__(self, cubes):
        self._num_cubes = cubes
        self.unwrapped = self
        self.p_stacks = []

    def reset(self, seed):
        return None, self.get_reset_info()

    def set_new_target(self, return_info, p_stack):
        assert not return_info
        self.p_stacks.append(p_stack)

    def get_reset_info(self):
        target = len(self.p_stacks)
        return {'target': target, 'privileged/target_task': ('cube', 'button')[target % 2]}


@pytest.fixture
def manipulate(monkeypatch):
    """manipulate(steps, ...): (arm, agents, actions) of an episode."""

    def run(steps, dataset_type='noisy', noise=0.1, p_random_action=0.0, cubes=1, seed=0):
        arm, agents = Arm(cubes), {'cube': Agent(), 'button': Agent()}
        monkeypatch.setattr(oracles, '_make_agents', lambda env, recipe: agents)
        recipe = Recipe('cube-v0', dataset_type, steps, noise, p_random_action)
        oracle = ManipulationOracle(arm, recipe, np.random.default_rng(seed))
        oracle.reset(0)
        actions = []
        for _ in range(steps):
            actions.append(oracle.act(None, {}))
            oracle.after_step({})
        return arm, agents, np.stack(actions)

    return run


def test_a_new_target_when_the_oracle_is_done(manipulate):
    _, agents, actions = manipulate(12)
    assert agents['cube'].targets == [0, 2, 4]
    assert agents['button'].targets == [1, 3]
    assert actions.dtype == np.float32


def test_noise_is_drawn_for_each_episode_and_scaled(manipulate):
    levels = []
    for seed in range(60):
        noise = manipulate(300, seed=seed, noise=0.02)[2] - 0.1
        level = noise[:, :3].std()
        levels.append(level)
        np.testing.assert_allclose(noise[:, 3].std(), 3 * level, rtol=0.2)
        np.testing.assert_allclose(noise[:, 4].std(), 10 * level, rtol=0.2)
    assert max(levels) == pytest.approx(0.02, rel=0.1)
    assert np.mean(levels) == pytest.approx(0.01, rel=0.2)


def test_plans_get_no_noise_besides_their_own(manipulate):
    np.testing.assert_array_equal(manipulate(10, 'play')[2], np.float32(0.1))


def test_random_actions(manipulate):
    actions = manipulate(2000, 'play', p_random_action=0.2)[2]
    is_random = (actions != np.float32(0.1)).any(axis=1)
    assert is_random.mean() == pytest.approx(0.2, abs=0.03)
    assert actions[is_random].std() == pytest.approx(3**-0.5, rel=0.05)
    assert actions[is_random].min() < -0.95


@pytest.mark.parametrize(
    ('cubes', 'low', 'high'), [(1, 0, 0), (2, 0, 0.25), (3, 0.05, 0.35), (4, 0.1, 0.5)]
)
def test_stacking_is_as_likely_as_in_ogbench(cubes, low, high, manipulate):
    drawn = [set(manipulate(9, cubes=cubes, seed=seed)[0].p_stacks) for seed in range(50)]
    assert set(map(len, drawn)) == {1}, 'one for each episode'
    values = [value for values in drawn for value in values]
    assert low <= min(values) <= low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) <= max(values) <= high


@pytest.mark.parametrize(
    ('y', 'z', 'is_sound'),
    [
        (0.0, 0.02, True),
        (0.29, 0.02, False),
        (-0.3, 0.02, False),
        (-0.3, 0.07, True),
        (-0.3, 0.09, False),
    ],
)
def test_a_cube_out_of_the_scenes_sight_spoils_the_episode(y, z, is_sound):
    qpos = np.zeros((10, 25), np.float32)
    qpos[:, 16] = 0.02
    qpos[4, 15:17] = y, z
    for buttons in (True, False):
        arm = Arm(1)
        if buttons:
            arm._num_buttons = 2
        oracle = ManipulationOracle.__new__(ManipulationOracle)
        oracle._arm = arm
        assert oracle.is_sound({'qpos': qpos}) is (is_sound or not buttons)


def test_a_spoilt_episode_is_begun_again(monkeypatch):
    class Oracle:
        attempts = 0

        def __init__(self, env, recipe, rng):
            Oracle.attempts += 1

        def reset(self, seed):
            return np.zeros(2), {}

        def act(self, observation, info):
            return np.full(2, Oracle.attempts, np.float32)

        def after_step(self, info):
            pass

        def is_sound(self, arrays):
            return Oracle.attempts == 3

    env = SimpleNamespace(
        step=lambda action: (
            *(np.zeros(2), 0.0, False, False),
            {'prev_qpos': np.zeros(2), 'prev_qvel': np.zeros(2)},
        )
    )
    monkeypatch.setattr(oracles, 'MazeOracle', Oracle)
    rows = []
    recipe = Recipe('pointmaze-v0', 'roam', 4, 0.1)
    arrays = oracles.run_episode(env, recipe, np.random.default_rng(0), rows.append)
    assert (arrays['actions'] == 3).all()
    assert Counter(rows) == {1: 15, -5: 2}
    assert sum(rows) == 5


# OGBench's numbers


@pytest.mark.parametrize(
    ('env_id', 'dataset_type', 'episodes', 'steps', 'noise', 'p_random_action'),
    [
        ('visual-cube-single-v0', 'play', 1000, 1000, 0.1, 0.0),
        ('cube-triple-v0', 'noisy', 3000, 1000, 0.1, 0.1),
        ('visual-cube-quadruple-v0', 'play', 5000, 1000, 0.1, 0.0),
        ('scene-v0', 'noisy', 1000, 1000, 0.1, 0.1),
        ('puzzle-4x4-v0', 'noisy', 1000, 1000, 0.1, 0.2),
        ('puzzle-4x5-v0', 'play', 3000, 1000, 0.1, 0.0),
        ('puzzle-4x6-v0', 'noisy', 5000, 1000, 0.1, 0.2),
        ('pointmaze-large-v0', 'navigate', 1000, 1000, 0.5, 0.0),
        ('pointmaze-giant-v0', 'navigate', 500, 2000, 0.5, 0.0),
        ('pointmaze-giant-v0', 'stitch', 5000, 200, 0.5, 0.0),
        ('visual-pointmaze-medium-v0', 'explore', 10_000, 500, 1.0, 0.0),
    ],
)
def test_ogbenchs_numbers(env_id, dataset_type, episodes, steps, noise, p_random_action):
    recipe, number = ogbench_recipe(env_id, dataset_type)
    assert number == episodes
    assert recipe == Recipe(env_id, dataset_type, steps, noise, p_random_action)


def test_every_environment_has_a_first_type():
    for env in (*MANIPULATION_ENVS, *MAZE_ENVS):
        for prefix in ('', 'visual-'):
            recipe, _ = ogbench_recipe(f'{prefix}{env}-v0')
            expected = 'play' if env in MANIPULATION_ENVS else 'navigate'
            assert dataset_name(recipe) == f'{prefix}{env}-{expected}-v0'
            assert recipe.is_visual == bool(prefix)
