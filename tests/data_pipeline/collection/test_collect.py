"""Scripted collection: the file's format, reproducible episodes, interruption."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.collection.collect import collect
from data_pipeline.collection.recipes import Recipe
from data_pipeline.errors import DataError

REPOSITORY = Path(__file__).parents[3]
ENV_ID = 'fql.envs.pointmaze:visual-pointmaze-quickstart-v0'
EPISODES = 4
EPISODE_STEPS = 30
ROWS = EPISODE_STEPS + 1
QUICKSTART_ROWS = (
    [[20.782643, 11.116257], [15.788798, 12.223155], [8.202189, 20.102085]],
    [[-0.6631415, 0.2341555], [-0.1285858, -0.306752], [-0.4579689, -1.0]],
)
"""qpos and actions of the first, a last and the next first row."""
RECIPE = Recipe(ENV_ID, 'roam', EPISODE_STEPS, noise=0.5, seed=1)


def collect_maze(out, episodes=EPISODES, workers=2, overwrite=False, progress=None, **changes):
    return collect(
        dataclasses.replace(RECIPE, **changes),
        out,
        episodes=episodes,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


@pytest.fixture(scope='module')
def collected(opengl, tmp_path_factory):
    return collect_maze(tmp_path_factory.mktemp('collected') / 'maze-v0.npz')


@pytest.fixture(scope='module')
def arrays(collected):
    with np.load(collected, allow_pickle=False) as file:
        return dict(file)


def test_the_file_has_ogbenchs_format(collected, arrays):
    rows = EPISODES * (EPISODE_STEPS + 1)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        'observations': ((rows, 32, 32, 3), np.uint8),
        'actions': ((rows, 2), np.float32),
        'terminals': ((rows,), bool),
        'qpos': ((rows, 2), np.float32),
        'qvel': ((rows, 2), np.float32),
    }
    expected = np.zeros((EPISODES, EPISODE_STEPS + 1), bool)
    expected[:, -1] = True
    np.testing.assert_array_equal(arrays['terminals'], expected.ravel())
    assert np.abs(arrays['actions']).max() <= 1
    assert list(collected.parent.iterdir()) == [collected], 'parts or temporary files are left'


def test_a_rows_action_leads_to_the_next_row(arrays):
    valid = np.flatnonzero(~arrays['terminals'])
    moves = arrays['qpos'][valid + 1] - arrays['qpos'][valid]
    errors = np.abs(moves - 0.2 * arrays['actions'][valid]).max(axis=1)
    # The point moves 0.2 * action a step; a wall may hold it.
    assert (errors < 1e-5).mean() > 0.8
    assert errors.max() < 0.5
    across = np.flatnonzero(arrays['terminals'])[:-1]
    jumps = np.abs(arrays['qpos'][across + 1] - arrays['qpos'][across]).max(axis=1)
    assert jumps.max() > 1, 'episodes begin where the one before ended'


RENDER = f"""
import os, sys
os.environ['MUJOCO_GL'] = 'egl'
import gymnasium, numpy as np
data = np.load(sys.argv[1])
env = gymnasium.make({ENV_ID!r}).unwrapped
for row in range(0, len(data['qpos']), 3):
    env.set_state(data['qpos'][row].astype(float), data['qvel'][row].astype(float))
    assert np.array_equal(env.render(), data['observations'][row]), row
print('rendered', row)
"""


def test_observations_show_the_qpos_beside_them(collected):
    printed = subprocess.check_output(
        [sys.executable, '-c', RENDER, str(collected)], cwd=REPOSITORY, text=True
    )
    assert printed == f'rendered {(EPISODES * (EPISODE_STEPS + 1) - 1) // 3 * 3}\n'


def test_episodes_differ(arrays):
    qpos = arrays['qpos'].reshape(EPISODES, EPISODE_STEPS + 1, 2)
    assert len(np.unique(qpos[:, 0], axis=0)) == EPISODES
    noise = arrays['actions'].reshape(EPISODES, EPISODE_STEPS + 1, 2)
    assert len(np.unique(noise[:, 0], axis=0)) == EPISODES


def test_an_episode_does_not_depend_on_workers_or_other_episodes(collected, tmp_path):
    alone = collect_maze(tmp_path / 'alone.npz', workers=1)
    assert alone.read_bytes() == collected.read_bytes()
    more = collect_maze(tmp_path / 'more.npz', episodes=5, workers=3)
    with np.load(more) as longer, np.load(collected) as shorter:
        for name in shorter.files:
            np.testing.assert_array_equal(longer[name][: len(shorter[name])], shorter[name])


@pytest.mark.parametrize('change', [{'seed': 2}, {'noise': 0.0}, {'split': 'val'}])
def test_seed_noise_and_split_change_the_actions(change, arrays, tmp_path):
    other = collect_maze(tmp_path / 'other.npz', episodes=1, **change)
    with np.load(other) as changed:
        assert not np.array_equal(changed['actions'], arrays['actions'][: EPISODE_STEPS + 1])


def test_a_killed_collection_goes_on_from_its_finished_episodes(collected, tmp_path):
    out = tmp_path / 'maze-v0.npz'
    parts = Path(f'{out}.parts')
    code = (
        'from data_pipeline.collection.collect import collect\n'
        'from data_pipeline.collection.recipes import Recipe\n'
        f'if __name__ == "__main__": collect({RECIPE!r}, {str(out)!r}, episodes=400, workers=2)'
    )
    script = tmp_path / 'killed.py'
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(parts.glob('episode-*.npz'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    kept = {part: part.stat().st_mtime_ns for part in parts.glob('episode-*.npz')}
    for part in sorted(kept)[2:]:
        part.unlink()
        del kept[part]

    mtimes = {}

    def progress(done, total):
        assert total == EPISODES * ROWS
        mtimes[done] = {part: part.stat().st_mtime_ns for part in kept}

    collect_maze(out, progress=progress)
    numbers = list(mtimes)
    assert (numbers[0], numbers[-1]) == (2 * ROWS, 4 * ROWS)
    assert numbers == sorted(numbers)
    assert mtimes[4 * ROWS] == kept
    assert out.read_bytes() == collected.read_bytes()
    assert not parts.exists()


@pytest.fixture
def kept_parts(opengl, tmp_path, monkeypatch):
    """The episodes of a collection that ended before they were merged."""
    with monkeypatch.context() as patch:
        patch.setattr('data_pipeline.collection.collect._merge', lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            collect_maze(tmp_path / 'maze-v0.npz')
    return sorted((tmp_path / 'maze-v0.npz.parts').glob('episode-*.npz'))


@pytest.mark.parametrize(
    'size', [0, *(pytest.param(size, marks=pytest.mark.long) for size in (1000, -1))]
)
def test_an_episode_whose_file_is_cut_short_is_collected_again(
    kept_parts, collected, tmp_path, size
):
    for part in kept_parts[:2]:
        os.truncate(part, size % part.stat().st_size)
    recipe = kept_parts[0].with_name('recipe.json')
    recipe.write_bytes(recipe.read_bytes() + b'\r\n')  # As an editor or a sync tool may add.
    numbers = []
    out = collect_maze(tmp_path / 'maze-v0.npz', progress=lambda done, _: numbers.append(done))
    assert (numbers[0], numbers[-1]) == (2 * ROWS, 4 * ROWS)
    assert out.read_bytes() == collected.read_bytes()


@pytest.mark.parametrize('episode', [0, pytest.param(2, marks=pytest.mark.long)])
def test_an_episode_whose_file_is_damaged_is_named_and_removed(
    kept_parts, collected, tmp_path, episode
):
    part = kept_parts[episode]
    data = bytearray(part.read_bytes())
    data[1000] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=r'damaged \(Bad CRC-32') as caught:
        collect_maze(tmp_path / 'maze-v0.npz')
    assert str(part) in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'maze-v0.npz').exists()
    assert collect_maze(tmp_path / 'maze-v0.npz').read_bytes() == collected.read_bytes()


def test_an_episode_unlike_the_others_is_not_merged(kept_parts, tmp_path):
    with np.load(kept_parts[1]) as file:
        arrays = dict(file)
    np.savez(kept_parts[1], **{**arrays, 'actions': arrays['actions'][:-1]})
    with pytest.raises(DataError, match=r'episode-000001\.npz: actions is .* unlike the first'):
        collect_maze(tmp_path / 'maze-v0.npz')
    assert not (tmp_path / 'maze-v0.npz').exists()
    assert all(part.exists() for part in kept_parts)


def test_two_collections_at_once(tmp_path):
    out = tmp_path / 'maze-v0.npz'

    def start_another(done, total):
        collect_maze(out)

    with pytest.raises(DataError, match=f'another process collects into {out}'):
        collect_maze(out, progress=start_another)


@pytest.mark.parametrize('recipe', [b'{"env_id": "other"}', b'\xff'])
def test_parts_of_another_recipe_are_not_mixed_in(tmp_path, recipe):
    out = tmp_path / 'maze-v0.npz'
    parts = tmp_path / 'maze-v0.npz.parts'
    parts.mkdir()
    (parts / 'recipe.json').write_bytes(recipe)
    (parts / 'episode-000000.npz').touch()
    with pytest.raises(DataError, match='another collection') as caught:
        collect_maze(out)
    assert str(parts) in str(caught.value)


def test_a_misspelt_environment_does_not_block_the_next_collection(tmp_path):
    out = tmp_path / 'maze-v0.npz'
    with pytest.raises(DataError, match='cannot make environment'):
        collect_maze(out, env_id='visual-pointmaze-misspelt-v0')
    collect_maze(out, episodes=1, workers=1)
    assert out.exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'episodes': 0}, 'episodes must be at least 1, not 0'),
        ({'episode_steps': 0}, 'episode_steps must be at least 1, not 0'),
        ({'workers': 0}, 'workers must be at least 1, not 0'),
        ({'seed': -1}, 'must not be negative'),
        ({'noise': -0.1}, 'must not be negative'),
        ({'noise': float('nan')}, 'must not be negative'),
        ({'p_random_action': 1.5}, 'p_random_action must be in [0, 1], not 1.5'),
        ({'dataset_type': 'play'}, "no data of type 'play', only navigate, stitch, explore, roam"),
        ({'env_id': 'antmaze-medium-v0'}, "no oracle for environment 'antmaze-medium-v0'"),
        ({'env_id': 'pointmaze-tiny-v0'}, 'pointmaze-tiny'),
        ({'env_id': 'visual-pointmaze-medium'}, 'is missing: visual-pointmaze-medium-v0'),
        ({'env_id': 'no_such_module:pointmaze-v0'}, 'no_such_module'),
        ({'env_kwargs': {'maze_typ': 'medium'}}, 'maze_typ'),
        ({'env_kwargs': {'ob_type': 'pixels'}}, 'ob_type'),
    ],
)
def test_what_cannot_be_collected_gives_one_line(change, message, tmp_path):
    with pytest.raises(DataError) as caught:
        collect_maze(tmp_path / 'maze-v0.npz', **change)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not multiprocessing.active_children()


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / 'maze-v0.npz.parts').touch()
    with pytest.raises(DataError, match=r'maze-v0\.npz: cannot be written: Not a directory'):
        collect_maze(tmp_path / 'maze-v0.npz')


def test_an_existing_file_is_not_overwritten(tmp_path):
    out = tmp_path / 'maze-v0.npz'
    out.write_bytes(b'precious')
    with pytest.raises(DataError, match='exists; delete it'):
        collect_maze(out)
    assert out.read_bytes() == b'precious'


def test_an_existing_file_is_replaced_when_asked_and_only_by_a_whole_one(opengl, tmp_path):
    out = tmp_path / 'maze-v0.npz'
    out.write_bytes(b'precious')
    contents = []
    collect_maze(
        out, episodes=1, overwrite=True, progress=lambda *_: contents.append(out.read_bytes())
    )
    assert set(contents) == {b'precious'}
    with np.load(out) as arrays:
        assert len(arrays['terminals']) == ROWS


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot be written') as caught:
        collect_maze(tmp_path / 'file' / 'maze-v0.npz')
    assert '\n' not in str(caught.value)


FULL_DISK = """
import resource, sys
from pathlib import Path
from data_pipeline.collection.collect import collect
from data_pipeline.errors import DataError
from data_pipeline.collection.recipes import Recipe

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
out = Path(sys.argv[1])
try:
    collect(Recipe('pointmaze-medium-v0', 'roam', 5_000, 0.5), out, episodes=1, workers=1)
except DataError as error:
    print(error)
print(sorted(path.name for path in Path(f'{out}.parts').iterdir()))
"""


def test_a_disk_that_takes_no_more_gives_one_line_and_leaves_no_torso(run_python, tmp_path):
    out = tmp_path / 'maze-v0.npz'
    done = run_python(FULL_DISK, out)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message == f'{out}.parts: cannot be written: File too large'
    assert left == "['collect.lock', 'recipe.json']"


def test_no_opengl_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'egl')
    monkeypatch.setenv('__EGL_VENDOR_LIBRARY_DIRS', '/nonexistent')
    with pytest.raises(DataError, match='apt-get install libegl1') as caught:
        collect_maze(tmp_path / 'maze-v0.npz')
    assert '\n' not in str(caught.value)


def test_a_killed_worker_is_reported(opengl, tmp_path):
    def kill_one(done, total):
        if done > 0:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(DataError, match=r'died \(exit code -9\)'):
        collect_maze(tmp_path / 'maze-v0.npz', progress=kill_one, episode_steps=200)
    assert not multiprocessing.active_children()


def collect_hanging(folder, at, times, monkeypatch, **options):
    """Collects 3 episodes with one worker, which hangs in its step `at`."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    folder.mkdir()
    recipe = Recipe(
        'hanging_maze:pointmaze-hangs-v0',
        'roam',
        EPISODE_STEPS,
        noise=0.5,
        env_kwargs={'folder': str(folder), 'at': at, 'times': times},
    )
    out = folder / 'maze.npz'
    return collect(recipe, out, episodes=3, workers=1, env_step_seconds=0.5, **options)


def test_an_episode_whose_worker_hangs_is_repeated(tmp_path, monkeypatch):
    whole = collect_hanging(tmp_path / 'whole', 40, 0, monkeypatch)
    done, notices = [], []
    out = collect_hanging(
        *(tmp_path / 'hung', 40, 1, monkeypatch),
        progress=lambda rows, _: done.append(rows),
        notify=notices.append,
    )
    assert out.read_bytes() == whole.read_bytes()
    assert done[-1] == max(done) == 3 * ROWS
    (notice,) = notices
    assert 'took longer than 0.5 s' in notice


@pytest.mark.long
def test_an_episode_whose_worker_hangs_again_is_given_up(tmp_path, monkeypatch):
    with pytest.raises(DataError, match='of episode 0, for the second time') as caught:
        collect_hanging(tmp_path / 'hung', 10, 2, monkeypatch)
    assert '\n' not in str(caught.value)
    assert not multiprocessing.active_children()


def test_the_quickstarts_data_stay_as_they_are(opengl, tmp_path):
    """Users keep the file, and compare runs on it."""
    with np.load(collect_maze(tmp_path / 'maze-v0.npz', episodes=2, seed=0)) as arrays:
        rows = arrays['qpos'][[0, ROWS - 1, ROWS]], arrays['actions'][[0, ROWS - 1, ROWS]]
    np.testing.assert_allclose(rows, QUICKSTART_ROWS, atol=1e-5)


def test_a_link_in_place_of_the_parts_is_refused_before_anything_is_collected(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'maze-v0.npz.parts').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(DataError, match=r'maze-v0\.npz\.parts is a link'):
        collect_maze(tmp_path / 'maze-v0.npz')
    assert not list((tmp_path / 'elsewhere').iterdir())
