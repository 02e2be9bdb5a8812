"""Names of tasks against OGBench's registry, and the published hyperparameters."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from fql.envs.tasks import QUICKSTART_TASK, find_task, task_names
from fql.errors import FQLError
from fql.settings.presets import default_config, has_preset
from fql.settings.published_settings import ONLINE_PRESETS, PRESETS
from fql.settings.train_config import TrainConfig

LIST_REGISTRY = """
import json
import gymnasium
import ogbench
import fql.envs.pointmaze
import fql.envs.small_puzzle
ogbenchs = {i for i, spec in gymnasium.registry.items() if 'ogbench.' in str(spec.entry_point)}
import fql.envs.d4rl_adroit
import fql.envs.d4rl_antmaze
print(json.dumps([sorted(ogbenchs), sorted(gymnasium.registry)]))
"""
FAMILIES = [
    'pointmaze-teleport-navigate-singletask-task2-v0',
    'antmaze-giant-navigate-singletask-v0',
    'humanoidmaze-large-navigate-singletask-task1-v0',
    'antsoccer-arena-navigate-singletask-v0',
    'cube-octuple-play-singletask-task5-v0',
    'scene-noisy-singletask-task1-v0',
    'puzzle-4x6-play-singletask-task3-v0',
]
STEP_AND_LABEL = """
import json
import sys
import numpy as np
from data_pipeline.store.labels import relabel
from fql.envs.make import EnvSpec, make_env
from fql.envs.tasks import find_task
for name in sys.argv[1:]:
    task = find_task(name)
    env = make_env(EnvSpec(task.env_id, (('success_timing', 'post'),)))
    env.reset(seed=0)
    rows = {'qpos': [], 'qvel': [], 'button_states': []}
    rewards = []
    for _ in range(3):
        _, reward, _, _, info = env.step(env.action_space.sample())
        assert info['success'] == 0
        rewards.append(reward)
        for key in rows:
            rows[key].append(info.get(key, 0))
    if 'button_states' not in info:
        del rows['button_states']
    arrays = {key: np.array(values) for key, values in rows.items()}
    expected, masks = relabel(name, env.action_space.shape[0], arrays, task.label_env_id)
    print(json.dumps([name, rewards, expected.tolist(), masks.tolist()]))
"""
# Of the OGBench that this repository pins.
OGBENCH_IDS = 246
PAPER_STATES = {
    **{'antmaze-large-navigate': (10, 'min', 0.99), 'antmaze-giant-navigate': (10, 'min', 0.995)},
    'humanoidmaze-medium-navigate': (30, 'mean', 0.995),
    'humanoidmaze-large-navigate': (30, 'mean', 0.995),
    'antsoccer-arena-navigate': (10, 'mean', 0.995),
    **{'cube-single-play': (300, 'mean', 0.99), 'cube-double-play': (300, 'mean', 0.99)},
    'scene-play': (300, 'mean', 0.99),
    **{'puzzle-3x3-play': (1000, 'mean', 0.99), 'puzzle-4x4-play': (1000, 'mean', 0.99)},
}
PAPER_PIXELS = {
    **{'visual-cube-single-play': 300, 'visual-cube-double-play': 100},
    **{'visual-scene-play': 100, 'visual-puzzle-3x3-play': 300, 'visual-puzzle-4x4-play': 300},
}
PAPER_D4RL = {
    **{'antmaze-umaze-v2': 10, 'antmaze-umaze-diverse-v2': 10},
    **{'antmaze-medium-play-v2': 10, 'antmaze-medium-diverse-v2': 10},
    **{'antmaze-large-play-v2': 3, 'antmaze-large-diverse-v2': 3},
    **{'pen-human-v1': 10_000, 'pen-cloned-v1': 10_000, 'pen-expert-v1': 3_000},
    **{'door-human-v1': 30_000, 'door-cloned-v1': 30_000, 'door-expert-v1': 30_000},
    **{'hammer-human-v1': 30_000, 'hammer-cloned-v1': 10_000, 'hammer-expert-v1': 30_000},
    **{'relocate-human-v1': 10_000, 'relocate-cloned-v1': 30_000, 'relocate-expert-v1': 30_000},
}


@pytest.fixture(scope='module')
def registries():
    """OGBench's ids, and all ids with those of this repository."""
    # In a separate process: MuJoCo's rendering and TensorFlow must not share this one.
    output = subprocess.run(
        [sys.executable, '-c', LIST_REGISTRY], check=True, capture_output=True, text=True
    ).stdout
    return [set(ids) for ids in json.loads(output)]


def test_every_task_is_registered_with_its_state_based_twin(registries):
    for name in task_names():
        task = find_task(name)
        assert task.env_id.split(':')[1] in registries[1], name
        if task.is_ogbench:
            assert task.label_env_id.split(':')[1] in registries[1], name
            assert not task.label_env_id.split(':')[1].startswith('visual-')


def test_every_single_task_environment_of_ogbench_has_a_task_for_each_type_of_data(registries):
    registered = {name for name in registries[0] if 'singletask' in name}
    assert len(registered) == OGBENCH_IDS
    names = set(task_names())
    for env_id in registered:
        is_manipulation = re.search('cube|scene|puzzle', env_id)
        for data in ('play', 'noisy') if is_manipulation else ('navigate', 'stitch', 'explore'):
            name = env_id.replace('-singletask', f'-{data}-singletask')
            assert name in names
            assert find_task(name).env_id == f'ogbench:{env_id}'


def test_an_environment_of_each_family_steps_and_labels_its_states_alike(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'disable')
    output = subprocess.run(
        [sys.executable, '-c', STEP_AND_LABEL, *FAMILIES],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seen = [json.loads(line) for line in output.splitlines()]
    assert [name for name, *_ in seen] == FAMILIES
    for name, rewards, expected, masks in seen:
        assert rewards == expected, name
        assert masks == [1, 1, 1]


def test_names_are_taken_apart():
    task = find_task('visual-cube-single-play-singletask-task3-v0')
    assert task.dataset == 'visual-cube-single-play-v0'
    assert task.env_id == 'ogbench:visual-cube-single-singletask-task3-v0'
    assert task.label_env_id == 'ogbench:cube-single-singletask-task3-v0'
    assert (task.has_images, task.is_ogbench, task.reward_offset) == (True, True, 0)


def test_tasks_of_d4rl():
    task = find_task('antmaze-large-play-v2')
    assert (task.dataset, task.is_ogbench, task.has_images) == (task.name, False, False)
    assert task.reward_offset == -1
    assert task.score(0.85) == 85
    assert find_task('antmaze-large-navigate-singletask-v0').is_ogbench
    door = find_task('door-cloned-v1')
    assert door.reward_offset == 0
    assert door.score(-56.512833) == 0
    assert door.score(2880.5693087298737) == 100
    with pytest.raises(ValueError, match='no normalised score'):
        find_task(QUICKSTART_TASK).score(1)


def test_unknown_task_names_the_nearest():
    with pytest.raises(FQLError, match='visual-cube-single-play-singletask-task1-v0'):
        find_task('visual-cube-single-play-singletask-taks1-v0')


def test_strong_is_fql_from_images_and_qc_fql_from_states():
    pixels, states = (
        find_task(f'{prefix}puzzle-3x3-play-singletask-task1-v0') for prefix in ('visual-', '')
    )
    plain = default_config(pixels)
    strong = default_config(pixels, preset='strong')
    assert strong.agent.horizon == 5
    same = dataclasses.replace(strong.agent, horizon=1)
    assert dataclasses.replace(strong, agent=same) == plain
    plain = default_config(states, 'qc_fql')
    strong = default_config(states, 'qc_fql', preset='strong')
    assert strong.agent == dataclasses.replace(plain.agent, horizon=5, alpha=1000.0)
    assert dataclasses.replace(strong, agent=plain.agent) == plain
    humanoid = find_task('humanoidmaze-medium-navigate-singletask-task1-v0')
    assert default_config(humanoid, 'qc_fql', preset='strong').agent.discount == 0.995


@pytest.mark.parametrize(
    ('name', 'agent', 'preset', 'says'),
    [
        ('puzzle-3x3-play-singletask-task1-v0', 'fql', 'strong', 'give --agent qc_fql'),
        ('visual-puzzle-3x3-play-singletask-task1-v0', 'iql', 'strong', 'give --agent fql'),
        ('cube-triple-noisy-singletask-task1-v0', 'qc_fql', 'strong', 'has none'),
        ('puzzle-3x3-play-singletask-task1-v0', 'fql', 'stronger', 'are default, strong'),
        ('own', 'fql', 'strong', 'not for data of your own: give --horizon 5'),
    ],
)
def test_tasks_and_agents_without_a_preset(name, agent, preset, says):
    with pytest.raises(FQLError, match=says):
        default_config(find_task(name), agent, preset=preset)


def test_the_73_tasks_of_the_paper_have_its_hyperparameters():
    seen = {}
    for dataset, (alpha, q_agg, discount) in PAPER_STATES.items():
        for number in range(1, 6):
            name = f'{dataset}-singletask-task{number}-v0'
            seen[name] = (alpha, q_agg, discount, 1_000_000, 1)
    for dataset, alpha in PAPER_PIXELS.items():
        seen[f'{dataset}-singletask-task1-v0'] = (alpha, 'mean', 0.99, 500_000, 3)
    for name, alpha in PAPER_D4RL.items():
        q_agg = 'mean' if 'antmaze' in name else 'min'
        seen[name] = (alpha, q_agg, 0.99, 500_000, 1)
    assert len(seen) == 73
    for name, expected in seen.items():
        task = find_task(name)
        config = default_config(task)
        agent = config.agent
        found = (agent.alpha, agent.q_agg, agent.discount, config.steps, config.frame_stack)
        assert found == expected, name
        assert has_preset('fql', task)
        assert (config.batch_size, config.shift_probability) == (256, 0.5)
        assert (agent.lr, agent.tau, agent.hidden_dims) == (3e-4, 0.005, (512,) * 4)
        assert not agent.normalize_q_loss


def test_presets_are_of_known_datasets_and_settings():
    datasets = {find_task(name).dataset for name in task_names()}
    for (agent, dataset), preset in {**PRESETS, **ONLINE_PRESETS}.items():
        assert dataset in datasets
        assert preset.source
        default_config(find_task(QUICKSTART_TASK), agent)
    assert ONLINE_PRESETS['fql', 'humanoidmaze-medium-navigate-v0'].settings['alpha'] == 100
    assert ONLINE_PRESETS['fql', 'hammer-cloned-v1'].settings == {'alpha': 1000, 'q_agg': 'min'}
    assert ONLINE_PRESETS['fql', 'antmaze-large-play-v2'].settings == {'alpha': 3}
    assert ('fql', 'hammer-human-v1') not in ONLINE_PRESETS


def test_the_baselines_have_the_papers_settings_on_its_pixel_tasks():
    """Of its Table 6: one value for each of the five tasks."""
    envs = ('cube-single', 'cube-double', 'scene', 'puzzle-3x3', 'puzzle-4x4')
    published = {
        ('iql', 'alpha'): (1.0, 0.3, 10.0, 10.0, 3.0),
        ('rebrac', 'alpha_actor'): (1.0, 0.1, 0.1, 0.3, 0.3),
        ('rebrac', 'alpha_critic'): (0.0, 0.0, 0.01, 0.01, 0.01),
        ('ifql', 'num_samples'): (32,) * 5,
        ('fbrac', 'alpha'): (100.0, 100.0, 100.0, 100.0, 300.0),
    }
    for (agent, name), values in published.items():
        for env, value in zip(envs, values, strict=True):
            task = find_task(f'visual-{env}-play-singletask-task1-v0')
            assert getattr(default_config(task, agent).agent, name) == value, (agent, env)


@pytest.mark.parametrize(
    ('agent', 'task', 'settings'),
    [
        ('iql', 'humanoidmaze-medium-navigate-singletask-v0', {'alpha': 10, 'discount': 0.995}),
        ('rebrac', 'visual-cube-single-play-singletask-task1-v0', {'alpha_actor': 1}),
        ('sac', 'humanoidmaze-medium-navigate-singletask-v0', {'discount': 0.995, 'q_agg': 'min'}),
        ('fbrac', 'visual-scene-play-singletask-task1-v0', {'alpha': 100}),
        ('fbrac', 'visual-puzzle-4x4-play-singletask-task1-v0', {'alpha': 300}),
        ('rebrac', 'visual-scene-play-singletask-task1-v0', {'alpha_actor': 0.1}),
        ('iql', 'visual-cube-double-play-singletask-task1-v0', {'alpha': 0.3, 'discount': 0.99}),
        ('ifql', 'cube-triple-play-singletask-task2-v0', {'num_samples': 32, 'discount': 0.995}),
    ],
)
def test_other_agents_have_what_was_published(agent, task, settings):
    config = default_config(find_task(task), agent).agent
    assert {name: getattr(config, name) for name in settings} == settings
    assert has_preset(agent, find_task(task))


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


def test_where_nobody_tuned_q_is_normalised_and_alpha_is_of_the_advised_range():
    untuned = [name for name in task_names() if not has_preset('fql', find_task(name))]
    for name in ('own', *untuned):
        agent = default_config(find_task(name)).agent
        assert agent.normalize_q_loss
        assert 0.03 <= agent.alpha <= 10
    published = default_config(find_task('visual-cube-single-play-singletask-task1-v0')).agent
    assert (published.normalize_q_loss, published.alpha) == (False, 300)
