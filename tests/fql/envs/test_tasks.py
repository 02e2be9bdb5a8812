"""Names of tasks against OGBench's own registry, and the paper's hyperparameters."""

import json
import subprocess
import sys

import pytest

from fql.envs.tasks import QUICKSTART_TASK, find_task, task_names
from fql.errors import FQLError
from fql.training.config import TrainConfig
from fql.training.presets import default_config, has_preset

LIST_REGISTRY = """
import json
import gymnasium
import ogbench
import fql.envs.pointmaze
print(json.dumps(sorted(gymnasium.registry)))
"""


@pytest.fixture(scope='module')
def registry():
    # In a process of its own: MuJoCo's rendering and TensorFlow must not meet in this one.
    output = subprocess.run(
        [sys.executable, '-c', LIST_REGISTRY], check=True, capture_output=True, text=True
    ).stdout
    return set(json.loads(output))


def test_every_task_is_registered_with_its_state_based_twin(registry):
    for name in task_names():
        task = find_task(name)
        assert task.env_id.split(':')[1] in registry, name
        assert task.label_env_id.split(':')[1] in registry, name
        assert not task.label_env_id.split(':')[1].startswith('visual-')


def test_every_visual_single_task_environment_has_a_task(registry):
    known = {find_task(name).env_id.split(':')[1] for name in task_names()}
    registered = {name for name in registry if name.startswith('visual-') and 'singletask' in name}
    without_dataset = {name for name in registered if 'humanoidmaze-teleport' in name}
    assert registered - without_dataset == {name for name in known if name.startswith('visual-')}


def test_names_are_taken_apart():
    task = find_task('visual-cube-single-play-singletask-task3-v0')
    assert task.env == 'visual-cube-single'
    assert task.dataset == 'visual-cube-single-play-v0'
    assert task.env_id == 'ogbench:visual-cube-single-singletask-task3-v0'
    assert task.label_env_id == 'ogbench:cube-single-singletask-task3-v0'


def test_unknown_task_names_the_nearest():
    with pytest.raises(FQLError, match='visual-cube-single-play-singletask-task1-v0'):
        find_task('visual-cube-single-play-singletask-taks1-v0')


@pytest.mark.parametrize(
    ('task', 'alpha', 'steps', 'frame_stack'),
    [
        # The paper's table of pixel tasks.
        ('visual-cube-single-play-singletask-task1-v0', 300, 500_000, 3),
        ('visual-cube-double-play-singletask-task1-v0', 100, 500_000, 3),
        ('visual-scene-play-singletask-task1-v0', 100, 500_000, 3),
        ('visual-puzzle-3x3-play-singletask-task1-v0', 300, 500_000, 3),
        ('visual-puzzle-4x4-play-singletask-task1-v0', 300, 500_000, 3),
        # And of its states, which are not stacked.
        ('puzzle-4x4-play-singletask-v0', 1000, 1_000_000, 1),
    ],
)
def test_paper_hyperparameters(task, alpha, steps, frame_stack):
    config = default_config(find_task(task))
    assert (config.agent.alpha, config.steps) == (alpha, steps)
    assert (config.batch_size, config.frame_stack, config.shift_probability) == (
        256,
        frame_stack,
        0.5,
    )
    assert (config.agent.lr, config.agent.tau, config.agent.hidden_dims) == (
        3e-4,
        0.005,
        (512,) * 4,
    )


def test_quickstart_has_its_own_settings():
    assert default_config(find_task(QUICKSTART_TASK)).steps < TrainConfig(task='').steps


def test_the_paper_tuned_play_and_navigate_only():
    tuned = {name for name in task_names() if has_preset('fql', find_task(name))}
    assert QUICKSTART_TASK in tuned
    assert 'visual-cube-single-play-singletask-task2-v0' in tuned
    assert 'antmaze-large-navigate-singletask-task1-v0' in tuned
    assert 'visual-cube-single-noisy-singletask-task2-v0' not in tuned
    assert 'antmaze-large-stitch-singletask-task1-v0' not in tuned
    assert 'visual-cube-triple-play-singletask-task1-v0' not in tuned
    assert not has_preset('fql', find_task('own'))
