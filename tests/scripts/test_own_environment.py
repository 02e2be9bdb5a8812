"""Custom environments: the example of the docs, unchanged, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.replay_store import open_replay

DOCS = Path(__file__).parents[2] / 'docs' / 'own-environment.md'
SMALL = ('--batch-size', 8, '--hidden-dims', 8, '--flow-steps', 2, '--steps', 2)
SMALL = (*SMALL, '--eval-episodes', 2, '--eval-workers', 1, '--log-interval', 1)
PICTURES = """
import gymnasium
import numpy as np


class Pictures(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.picture(), {}

    def step(self, action):
        return self.picture(), 2.0, False, False, {}

    def picture(self):
        return self.np_random.integers(0, 256, (32, 32, 3), np.uint8)


gymnasium.register('Pictures-v0', Pictures, max_episode_steps=3)
gymnasium.register('Wide-v0', 'pictures:Wide')


class Wide(Pictures):
    observation_space = gymnasium.spaces.Box(0, 255, (32, 48, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (5,), np.float32)
"""


@pytest.fixture(scope='module')
def example(tmp_path_factory):
    """A folder with the files of the docs, and the docs' commands."""
    folder = tmp_path_factory.mktemp('example')
    environment, collect = re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)
    (commands,) = re.findall(r'```\n(python collect.*?)```', DOCS.read_text(), re.DOTALL)
    assert len(environment.splitlines()) < 30
    (folder / 'reach.py').write_text(environment)
    (folder / 'collect.py').write_text(collect)
    first, *others = [line.split() for line in commands.replace('\\\n', '').splitlines()]
    subprocess.run([sys.executable, *first[1:]], cwd=folder, check=True)
    return folder, [command[1:] for command in others]


@pytest.fixture
def reach(example, fql, monkeypatch, tmp_path):
    """(dataset prepared, command of training, command of evaluation), in the example's folder."""
    folder, (prepare, train, evaluate) = example
    monkeypatch.chdir(folder)
    for module in ('reach', 'pictures'):  # Forgets the module of another test's folder.
        monkeypatch.delitem(sys.modules, module, raising=False)
    done = fql(*prepare)
    assert done.returncode == 0, done.stderr
    run = str(tmp_path / 'run')
    return [[run if x == 'runs/reach' else x for x in command] for command in (train, evaluate)]


@pytest.mark.long
def test_the_example_of_the_docs_runs(fql, reach):
    train, evaluate = reach
    done = fql(*train, *SMALL, '--eval-interval', 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r'success: 1: [\d.]+%, 2: [\d.]+%', done.stdout)
    done = fql(*evaluate, '--workers', 1)
    assert done.returncode == 0, done.stderr
    assert re.match(
        r'reach:Reach-v0: one_step policy of update 2: success [\d.]+% over', done.stdout
    )


@pytest.mark.long
def test_a_run_without_an_environment_can_be_evaluated_and_watched_in_one(
    fql, assert_one_line, reach, tmp_path
):
    train, _ = reach
    run = tmp_path / 'run'
    arguments = train[: train.index('--env')] + train[train.index('--env') + 2 :]
    done = fql(*arguments, *SMALL, '--save-interval', 1, '--eval-interval', 0)
    assert done.returncode == 0, done.stderr
    assert 'not evaluated' in done.stdout
    assert_one_line(fql('evaluate', run), 'has no environment', '--env MODULE:ID')
    flags = ('--env', 'reach:Reach-v0', '--episodes', 2, '--workers', 1)
    assert 'success' in fql('evaluate', run, *flags).stdout
    done = fql('evaluate', run, *flags, '--watch')
    assert done.returncode == 0, done.stderr
    assert len((run / 'eval.csv').read_text().splitlines()) == 3


@pytest.mark.long
def test_the_environment_goes_online_and_on(fql, reach, tmp_path):
    """The episodes' rewards and masks follow success; a time limit does not change them."""
    train, _ = reach
    first = (*train, *SMALL, '--steps', 0, '--eval-interval', 0)
    run = tmp_path / 'online'
    for arguments in (
        (*first, '--online-steps', 70, '--run-dir', run),
        ('train', '--resume', run, '--online-steps', 130),
    ):
        done = fql(*arguments)
        assert done.returncode == 0, done.stderr
        assert 'is not deterministic' not in done.stderr
    split = open_replay(run / 'replay').splits['train']
    rows = split.valid_rows
    reached = np.linalg.norm(split.observations[rows + 1], axis=1) < 0.15
    np.testing.assert_array_equal(split.labels['masks'][rows], 1 - reached)
    np.testing.assert_array_equal(split.labels['rewards'][rows], reached - 1.0)
    assert (split.lengths <= 51).all()
    assert len(split.lengths) > 2


@pytest.mark.parametrize(
    ('env', 'texts'),
    [
        ('rech:Reach-v0', ("there is no module 'rech'", 'current folder')),
        ('reach:Raech-v0', ("unknown environment 'reach:Raech-v0'", 'registers no such id')),
        ('Reach-v0', ('env must be MODULE:ID',)),
        ('pictures:Pictures-v0', ('observations (stacked) are (32, 32, 3) uint8', '(2,) float32')),
        ('pictures:Wide-v0', ('actions have size 5, those of the data 2', 'are (32, 48, 3)')),
    ],
)
def test_an_environment_that_does_not_fit_is_reported_in_one_line(
    fql, assert_one_line, reach, env, texts, tmp_path
):
    Path('pictures.py').write_text(PICTURES)
    train, _ = reach
    train[train.index('reach:Reach-v0')] = env
    assert_one_line(fql(*train, *SMALL, '--eval-interval', 1), *texts)
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_images_and_no_success(fql, maze_npz, monkeypatch, tmp_path):
    """If the environment reports no success, evaluations report the return."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, 'pictures', raising=False)
    Path('pictures.py').write_text(PICTURES)
    with np.load(maze_npz) as file:
        labels = {'rewards': np.zeros(len(file['actions'])), 'masks': np.ones(len(file['actions']))}
        np.savez('own.npz', **file, **labels)
    assert fql('prepare', tmp_path.name, '--source', 'own.npz').returncode == 0
    own = ('--task', 'own', '--dataset', tmp_path.name, '--env', 'pictures:Pictures-v0')
    encoder = ('--encoder', 'impala_debug', '--frame-stack', 2)
    done = fql('train', *own, *encoder, *SMALL, '--eval-interval', 1, '--run-dir', 'run')
    assert done.returncode == 0, done.stderr
    assert 'return: 1: 6.0, 2: 6.0' in done.stdout
    done = fql('report', 'run', '--out', 'runs.html')
    assert 'return' in done.stdout.splitlines()[1]
    assert ' '.join(done.stdout.splitlines()[2].split()) == 'fql 1 2 6.0 - 6.0 -'


def test_other_tasks_keep_their_own_environment(fql, assert_one_line, tmp_path):
    task = ('--task', 'antmaze-umaze-v2', '--env', 'reach:Reach-v0')
    done = fql('train', *task, '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'env is for --task own')
