import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.errors import DamagedError, DataError
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store import labels
from data_pipeline.store.frame_store import FrameStore
from data_pipeline.store.labels import labelled_tasks, stored_labels, task_labels
from data_pipeline.store.verification import check_array
from data_pipeline.store.writer import write_store
from data_pipeline.workers import WorkerGroup

CUBE = 'cube-single-singletask-task1-v0'


@pytest.fixture
def make_store(tmp_path, make_arrays):
    """make_store(qpos=..., ...): a store of 14 rows with these arrays; None leaves one out."""

    def make(**changes: np.ndarray | None) -> FrameStore:
        arrays = {k: v for k, v in {**make_arrays(), **changes}.items() if v is not None}
        np.savez(tmp_path / 'tiny-v0.npz', **arrays)
        return write_store(tmp_path / 'store', 'tiny-v0', npz_splits(tmp_path / 'tiny-v0.npz'))

    return make


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def names(folder: Path) -> list[str]:
    """The names in a folder, except locks."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


def cube_store(make_store, **changes: np.ndarray | None) -> FrameStore:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {
        'qpos': rng.normal(size=(14, 21)).astype(np.float32),
        'qvel': rng.normal(size=(14, 20)).astype(np.float32),
        'actions': rng.uniform(-1, 1, (14, 5)).astype(np.float32),
    }
    return make_store(**{**arrays, **changes})


def store_of_two_goals(make_store) -> FrameStore:
    """Seven rows at the goal of cube-single's task 1, then seven at that of task 2."""
    qpos = np.zeros((14, 21), np.float32)
    qpos[:7, 14:17] = [0.425, -0.1, 0.02]
    qpos[7:, 14:17] = [0.5, 0.0, 0.02]
    return cube_store(make_store, qpos=qpos)


@pytest.fixture
def no_worker(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError('labels were computed instead of read')

    monkeypatch.setattr(labels, 'WorkerGroup', refuse)


def ask_ogbench(run_python, code: str) -> list:
    """The labels by ogbench itself, in a separate interpreter."""
    result = run_python(f'import gymnasium, ogbench, json\nimport numpy as np\n{code}')
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_cube_labels_on_real_data(tmp_path, real_source, run_python):
    """Success: the cube is within 4 cm of its target, here computed without `relabel_dataset`."""
    store = write_store(tmp_path / 'store', 'visual-cube-single-play-v0', npz_splits(real_source))
    rewards, masks = task_labels(store, 'train', CUBE)
    target = ask_ogbench(
        run_python,
        f'env = gymnasium.make({CUBE!r})\n'
        'env.reset(seed=123)\n'
        'print(json.dumps(env.unwrapped._data.mocap_pos[0].tolist()))',
    )
    with np.load(real_source, allow_pickle=False) as arrays:
        cube = arrays['qpos'][:, 14:17].astype(np.float64)
    distances = np.sqrt(((cube - target) ** 2).sum(axis=1))
    is_success = distances <= 0.04
    assert 0 < is_success.sum() < len(is_success)
    assert np.abs(distances - 0.04).min() > 1e-7  # No row depends on rounding.
    assert rewards.dtype == masks.dtype == np.float32
    np.testing.assert_array_equal(rewards, np.where(is_success, 0, -1))
    np.testing.assert_array_equal(masks, np.where(is_success, 0, 1))

    official = ask_ogbench(
        run_python,
        'from ogbench.relabel_utils import relabel_dataset\n'
        f'data = dict(np.load({str(real_source)!r}))\n'
        f'relabel_dataset({CUBE!r}, gymnasium.make({CUBE!r}), data)\n'
        'print(json.dumps([data["rewards"].tolist(), data["masks"].tolist()]))',
    )
    np.testing.assert_array_equal(rewards, official[0])
    np.testing.assert_array_equal(masks, official[1])


def test_puzzle_rewards_count_unmet_buttons(make_store, run_python):
    env_id = 'puzzle-3x3-singletask-task2-v0'
    goal = ask_ogbench(
        run_python,
        f'env = gymnasium.make({env_id!r})\n'
        'env.reset()\n'
        'print(json.dumps(env.unwrapped._target_button_states.tolist()))',
    )
    states = np.random.default_rng(0).integers(0, 2, (14, 9))
    states[5] = goal
    store = make_store(
        qpos=np.zeros((14, 23), np.float32),
        qvel=np.zeros((14, 23), np.float32),
        actions=np.zeros((14, 5), np.float32),
        button_states=states,
    )
    rewards, masks = task_labels(store, 'train', env_id)
    unmet = [sum(s != g for s, g in zip(row, goal, strict=True)) for row in states.tolist()]
    np.testing.assert_array_equal(rewards, [-n for n in unmet])
    np.testing.assert_array_equal(masks, [float(n > 0) for n in unmet])
    assert masks[5] == 0


def test_pixel_maze_uses_its_twin(make_store, run_python):
    env_id = 'visual-antmaze-medium-singletask-task1-v0'
    goal = np.array(
        ask_ogbench(
            run_python,
            f'env = gymnasium.make({env_id.removeprefix("visual-")!r})\n'
            'env.reset()\n'
            'print(json.dumps(list(env.unwrapped.cur_goal_xy)))',
        )
    )
    qpos = np.zeros((14, 15))
    qpos[:, :2] = goal + np.random.default_rng(0).uniform(1, 20, (14, 2))
    qpos[4, :2] = goal + 0.3
    store = make_store(qpos=qpos, qvel=zeros(14, 14), actions=zeros(14, 8))
    rewards, masks = task_labels(store, 'train', f'ogbench:{env_id}')
    assert np.flatnonzero(masks == 0).tolist() == [4]
    np.testing.assert_array_equal(rewards, masks * -1)
    assert (store.path / 'labels' / env_id / 'train' / 'rewards.npy').exists()


def test_labels_are_computed_once(make_store, request):
    store = cube_store(make_store)
    first = task_labels(store, 'train', CUBE)
    folder = store.path / 'labels' / CUBE / 'train'
    np.testing.assert_array_equal(np.load(folder / 'rewards.npy'), first[0])
    np.testing.assert_array_equal(np.load(folder / 'masks.npy'), first[1])
    assert names(folder.parent) == ['train']
    request.getfixturevalue('no_worker')
    second = task_labels(store, 'train', CUBE)
    np.testing.assert_array_equal(first, second)


def test_labels_of_another_version_of_ogbench_are_not_taken(make_store, monkeypatch):
    store = cube_store(make_store)
    folder = store.path / 'labels' / CUBE / 'train'
    records = []
    for version in ('1.2.0', '1.2.1'):
        monkeypatch.setattr(labels, 'version', lambda name, v=version: v)
        task_labels(store, 'train', CUBE)
        records.append((folder / 'labels.json').read_text())
    assert records[0] != records[1]


def test_labels_whose_record_has_other_fields_are_computed_again(make_store, capfd, request):
    store = store_of_two_goals(make_store)
    first = task_labels(store, 'train', CUBE)
    path = store.path / 'labels' / CUBE / 'train' / 'labels.json'
    entries = json.loads(path.read_text())['arrays']
    recipe = {'env_id': CUBE, 'env_kwargs': {}, 'ogbench': '1.2.1', 'data': {}}
    path.write_text(json.dumps({'recipe': recipe, 'arrays': entries}))
    np.save(path.with_name('masks.npy'), zeros(14))
    assert labelled_tasks(store, 'train') == []
    check_labels(store)
    capfd.readouterr()
    np.testing.assert_array_equal(task_labels(store, 'train', CUBE), first)
    assert capfd.readouterr().out == ''
    assert labelled_tasks(store, 'train') == [CUBE]
    check_labels(store)
    request.getfixturevalue('no_worker')
    np.testing.assert_array_equal(task_labels(store, 'train', CUBE), first)


@pytest.mark.parametrize(
    ('module', 'goal_file'), [('own_envs', 'own_envs.py'), ('mine.envs', 'mine/goals.py')]
)
def test_another_goal_under_the_same_id(make_store, tmp_path, monkeypatch, module, goal_file):
    """An environment of the user's, whose source changes between two runs."""
    monkeypatch.chdir(tmp_path)
    register = (
        'import gymnasium\n'
        'gymnasium.register("own-cube-v0", "ogbench.manipspace.envs.cube_env:CubeEnv",\n'
        '    max_episode_steps=200, kwargs={"env_type": "single", "reward_task_id": TASK})\n'
    )
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'envs.py').write_text('from mine.goals import TASK\n' + register)
    store = store_of_two_goals(make_store)
    found = []
    for task in (1, 2):
        goal = f'TASK = {task}' + '\n' * task + (register if module == 'own_envs' else '')
        (tmp_path / goal_file).write_text(goal)
        found.append(task_labels(store, 'train', f'{module}:own-cube-v0')[1].tolist())
    assert found == [[0.0] * 7 + [1.0] * 7, [1.0] * 7 + [0.0] * 7]


def test_labels_of_a_parallel_run_are_kept(make_store, monkeypatch, request):
    """Another run writes the same labels while this one computes its own."""
    store = store_of_two_goals(make_store)
    folder = store.path / 'labels' / CUBE / 'train'
    others = []

    def other_comes() -> WorkerGroup:
        monkeypatch.setattr(labels, 'WorkerGroup', WorkerGroup)
        others.append(task_labels(store, 'train', CUBE))
        others.append(folder.stat().st_ino)
        return WorkerGroup()

    monkeypatch.setattr(labels, 'WorkerGroup', other_comes)
    found = task_labels(store, 'train', CUBE)
    np.testing.assert_array_equal(found, others[0])
    assert folder.stat().st_ino == others[1]
    assert names(folder.parent) == ['train']
    request.getfixturevalue('no_worker')
    np.testing.assert_array_equal(task_labels(store, 'train', CUBE), found)


def test_a_store_that_cannot_be_written_is_labelled_all_the_same(make_store):
    store = store_of_two_goals(make_store)
    # As a read-only folder would not stop the superuser, a file stands in the folder's place.
    (store.path / 'labels').touch()
    _, masks = task_labels(store, 'train', CUBE)
    assert masks.tolist() == [0.0] * 7 + [1.0] * 7
    assert names(store.path) == ['labels', 'manifest.json', 'train']


@pytest.mark.parametrize(
    'harm',
    [
        lambda folder: (folder / 'rewards.npy').write_bytes(b''),
        lambda folder: os.truncate(folder / 'masks.npy', 140),
        lambda folder: os.truncate(folder / 'masks.npy', 20),
        lambda folder: (folder / 'labels.json').write_bytes(b'\xff'),
        lambda folder: (folder / 'labels.json').write_text('["'),
        lambda folder: np.save(folder / 'rewards.npy', np.full(14, 1000, np.float32)),
        lambda folder: np.save(folder / 'masks.npy', np.zeros((14, 1), np.float32)),
    ],
)
def test_damaged_labels_are_computed_again(make_store, monkeypatch, capfd, harm):
    store = cube_store(make_store)
    values = zeros(14), zeros(14) + 1
    monkeypatch.setattr(labels, '_compute_in_process', lambda *_args: values)
    task_labels(store, 'train', CUBE)
    capfd.readouterr()
    assert labelled_tasks(store, 'train') == [CUBE]
    folder = store.path / 'labels' / CUBE / 'train'
    harm(folder)
    assert labelled_tasks(store, 'train') in ([], [CUBE])
    with pytest.raises(DamagedError, match=f'{folder}'):
        check_labels(store)
    np.testing.assert_array_equal(task_labels(store, 'train', CUBE), values)
    [line] = capfd.readouterr().out.splitlines()
    assert line.startswith('damaged labels are computed again: ')
    assert str(folder) in line
    monkeypatch.setattr(labels, '_compute_in_process', None)
    np.testing.assert_array_equal(task_labels(store, 'train', CUBE), values)
    check_labels(store)


def check_labels(store: FrameStore) -> None:
    """Verifies as `fql inspect data --verify` does."""
    for array in stored_labels(store):
        check_array(array)


def test_labels_are_not_computed_from_damaged_arrays(make_store):
    store = cube_store(make_store)
    path = store.path / 'train' / 'qpos.npy'
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r'train/qpos\.npy is not what was written'):
        task_labels(store, 'train', CUBE)
    assert not (store.path / 'labels').exists()


def test_a_killed_worker_gives_one_line(make_store):
    store = cube_store(make_store)

    def kill() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        workers[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(
        DataError, match=f'the process that computes its labels for {CUBE} died'
    ) as caught:
        task_labels(store, 'train', CUBE)
    assert '\n' not in str(caught.value)


def test_the_caller_stays_free_of_mujoco(run_python):
    code = (
        'import sys\n'
        'import data_pipeline.store.labels\n'
        'heavy = {"mujoco", "gymnasium", "ogbench", "tensorflow", "jax"}\n'
        'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


WRONG_DATA = {
    'scene': ({}, 'scene-singletask-task1-v0', 'qpos has 21 columns, .* has 25'),
    'qpos': ({'qpos': zeros(14, 28)}, CUBE, 'qpos has 28 columns, .* has 21'),
    'qvel': ({'qvel': zeros(14, 26)}, CUBE, 'qvel has 26 columns, .* has 20'),
    'actions': ({'actions': zeros(14, 8)}, CUBE, 'actions has 8 columns, .* has 5'),
    'no qpos': ({'qpos': None}, CUBE, 'has no qpos'),
    'no buttons': (
        {'qpos': zeros(14, 23), 'qvel': zeros(14, 23)},
        'puzzle-3x3-singletask-task1-v0',
        'has no button_states',
    ),
    'buttons': (
        {'qpos': zeros(14, 23), 'qvel': zeros(14, 23), 'button_states': np.zeros((14, 4), int)},
        'puzzle-3x3-singletask-task1-v0',
        'button_states has 4 columns, .* has 9',
    ),
    'many tasks': ({}, 'cube-single-v0', 'has no single task'),
    'no such environment': ({}, 'cube-nonuple-v0', 'cube-nonuple-v0 cannot be made'),
    'no such module': ({}, 'nowhere:cube-v0', 'cannot be made: No module named'),
}


QUICK = {'qpos', 'buttons', 'no qpos', 'no such environment'}
"""Those of `make test`: each starts a process."""


@pytest.mark.parametrize(
    'name',
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in WRONG_DATA],
)
def test_data_of_another_environment(make_store, name):
    changes, env_id, message = WRONG_DATA[name]
    store = cube_store(make_store, **changes)
    with pytest.raises(DataError, match=message) as caught:
        task_labels(store, 'train', env_id)
    assert env_id.rpartition(':')[2] in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not (store.path / 'labels').exists()


def test_data_of_another_environment_names_both(make_store):
    with pytest.raises(DataError, match=f'dataset tiny-v0 is not of environment {CUBE}: qpos has'):
        task_labels(cube_store(make_store, qpos=zeros(14, 28)), 'train', CUBE)


def test_unknown_split():
    store = SimpleNamespace(path=Path('store'), splits={'train': None})
    with pytest.raises(DataError, match="no split 'val', only train"):
        task_labels(store, 'val', CUBE)  # type: ignore[arg-type]
