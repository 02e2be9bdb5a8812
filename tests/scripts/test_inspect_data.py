"""`fql inspect data` against NumPy on the source file."""

import numpy as np
import pytest


@pytest.fixture(scope='module')
def report(run_fql, prepared, tmp_path_factory):
    png = tmp_path_factory.mktemp('png') / 'maze.png'
    done = run_fql('inspect', 'data', prepared, '--verify', '--png', png)
    assert done.returncode == 0, done.stderr
    return done.stdout, png


def test_what_is_printed(report, maze_npz):
    text, _ = report
    with np.load(maze_npz) as source:
        arrays = dict(source)
    valid = ~arrays['terminals']
    assert f'train from {maze_npz}' in text
    assert 'observations  uint8 (300, 32, 32, 3)' in text
    assert 'train: 290 transitions in 10 trajectories of 29 to 29, median 29' in text
    for i, column in enumerate(arrays['actions'][valid].T):
        low, high, mean = column.min(), column.max(), column.mean()
        assert f'  action {i}: {low:+.4f} to {high:+.4f}, mean {mean:+.4f}' in text
    # The goal of the quickstart: cell (3, 4), at (12, 8), within 1.
    is_success = (np.linalg.norm(arrays['qpos'] - [12, 8], axis=-1) <= 1) & valid
    assert is_success.any()
    trajectories = len(np.unique(np.flatnonzero(is_success) // 30))
    assert (
        f'pointmaze-quickstart-singletask-v0: success in {is_success.sum()} transitions of '
        f'{trajectories} trajectories, rewards -1 to 0, '
        f'mean {is_success[valid].mean() - 1:.4f}'
    ) in text
    assert 'checksums: every array is as it was written' in text


def test_pictures(report):
    text, png = report
    for path in (png, png.with_name('maze-histograms.png')):
        assert path.stat().st_size > 10_000
        assert f'wrote {path}' in text


@pytest.mark.parametrize('name', ['a.png', 'a-histograms.png'])
def test_pictures_are_not_overwritten(assert_one_line, fql, prepared, tmp_path, name):
    (tmp_path / name).write_text('mine')
    done = fql('inspect', 'data', prepared, '--png', tmp_path / 'a.png')
    assert_one_line(done, name, 'exists')
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == 'mine'


@pytest.mark.parametrize('name', ['a', 'a.foo'])
def test_pictures_are_png(assert_one_line, fql, prepared, tmp_path, name):
    """Matplotlib would write a.png for `a`."""
    (tmp_path / 'a.png').write_text('mine')
    done = fql('inspect', 'data', prepared, '--png', tmp_path / name)
    assert_one_line(done, f'{name}: only .png pictures')
    assert (tmp_path / 'a.png').read_text() == 'mine'


def test_vectors_of_an_unknown_dataset(fql, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / 'v.npz',
        observations=rng.normal(size=(30, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, (30, 3)).astype(np.float32),
        terminals=np.isin(np.arange(30), (4, 9, 29)),
    )
    data = ('--data-dir', tmp_path)
    assert fql('prepare', 'mine', '--source', tmp_path / 'v.npz', *data).returncode == 0
    done = fql('inspect', 'data', 'mine', '--png', tmp_path / 'v.png', *data)
    assert done.returncode == 0, done.stderr
    assert 'in 3 trajectories of 4 to 19, median 4' in done.stdout
    assert 'success' not in done.stdout
    assert (tmp_path / 'v.png').exists()


def test_damage_is_found(assert_one_line, fql, maze_npz, tmp_path):
    data = ('--data-dir', tmp_path)
    assert fql('prepare', 'd', '--source', maze_npz, *data).returncode == 0
    path = tmp_path / 'd' / 'train' / 'observations.npy'
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert fql('inspect', 'data', 'd', *data).returncode == 0
    assert_one_line(fql('inspect', 'data', 'd', '--verify', *data), str(path), 'checksum')


def test_no_store(assert_one_line, fql, tmp_path):
    done = fql('inspect', 'data', 'nothing', '--data-dir', tmp_path)
    assert_one_line(done, 'no dataset nothing')
