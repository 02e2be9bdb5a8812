"""`fql inspect batch` against a NumPy computation from the source file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.files import write_json
from fql.agents.configs import AGENT_CONFIGS
from fql.augmentation_config import AugmentationConfig
from fql.envs.tasks import QUICKSTART_TASK, find_task
from fql.learner import split_seed
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import batch_preparer
from fql.runs.run_spec import RunSpec, write_spec
from fql.settings.presets import default_config
from fql.settings.train_config import OnlineConfig, TrainConfig
from fql.training.training_data import (
    load_training_data,
    loader_config,
    spec_of,
    store_of,
    training_batches,
)

PAD = 3


def frame(source, row, shift):
    padded = np.pad(source['observations'][row], ((PAD, PAD), (PAD, PAD), (0, 0)), mode='edge')
    height, width = source['observations'].shape[1:3]
    return padded[shift[0] : shift[0] + height, shift[1] : shift[1] + width]


@pytest.mark.usefixtures('prepared')
def test_batch_is_what_the_source_gives(fql, maze_npz, tmp_path):
    arguments = ('--task', QUICKSTART_TASK, '--seed', 3, '--batch-size', 64, '--frame-stack', 3)
    shifted = []
    for step in range(3):
        out = tmp_path / f'{step}.npz'
        done = fql(
            *('inspect', 'batch', *arguments, '--shift-probability', 0.5, '--horizon', 1),
            *('--step', step + 1, '--out', out, '--png', tmp_path / f'{step}.png'),
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f'{step}.png').stat().st_size > 10_000
        with np.load(out, allow_pickle=False) as batch, np.load(maze_npz) as source:
            source = dict(source)
            firsts = np.concatenate([[0], np.flatnonzero(source['terminals'])[:-1] + 1])
            for i, (t, shift) in enumerate(zip(batch['indices'], batch['shifts'], strict=True)):
                first = firsts[firsts <= t].max()
                rows = [max(t - 2, first), max(t - 1, first), t, t + 1]
                frames = [frame(source, row, shift) for row in rows]
                np.testing.assert_array_equal(
                    batch['observations'][i], np.concatenate(frames[:3], axis=-1)
                )
                np.testing.assert_array_equal(
                    batch['next_observations'][i],
                    np.concatenate([*frames[1:3], frames[3]], axis=-1),
                )
                assert not source['terminals'][t]
            limit = 1 - 1e-5
            np.testing.assert_array_equal(
                batch['actions'], np.clip(source['actions'][batch['indices']], -limit, limit)
            )
            # The goal of the quickstart: cell (3, 4), at (12, 8), within 1.
            distance = np.linalg.norm(source['qpos'][batch['indices']] - [12, 8], axis=-1)
            np.testing.assert_array_equal(batch['masks'], distance > 1)
            np.testing.assert_array_equal(batch['rewards'], (distance <= 1) - 1.0)
            shifted.append(bool(np.any(batch['shifts'] != PAD)))
    assert any(shifted)
    assert not all(shifted)


@pytest.mark.parametrize('flag', ['--out', '--png'])
def test_nothing_is_overwritten(fql, assert_one_line, tmp_path, flag):
    out = tmp_path / 'batch.png'
    out.write_text('mine')
    assert_one_line(fql('inspect', 'batch', '--task', QUICKSTART_TASK, flag, out), 'exists')
    assert out.read_text() == 'mine'


@pytest.mark.parametrize('name', ['batch', 'batch.foo'])
@pytest.mark.usefixtures('prepared')
def test_pictures_are_png(fql, assert_one_line, tmp_path, name):
    """Matplotlib would write batch.png for `batch`."""
    (tmp_path / 'batch.png').write_text('mine')
    done = fql('inspect', 'batch', '--task', QUICKSTART_TASK, '--png', tmp_path / name)
    assert_one_line(done, f'{name}: only .png pictures')
    assert (tmp_path / 'batch.png').read_text() == 'mine'


@pytest.mark.usefixtures('prepared')
def test_augmented_batch_is_what_the_update_sees(fql, tmp_path):
    """Compared with the batch that the training step passes to the update, at a later step."""
    seed, step = 5, 2
    flags = ('--brightness', 0.2, '--hue', 0.1, '--blur-probability', 0.5)
    flags = (*flags, '--cutout-probability', 0.5)
    arguments = ('inspect', 'batch', '--task', QUICKSTART_TASK, '--seed', seed, '--step', step + 1)
    arguments = (*arguments, '--batch-size', 8, '--frame-stack', 3)
    plain, augmented = tmp_path / 'plain.npz', tmp_path / 'augmented.npz'
    done = fql(*arguments, *flags, '--out', augmented, '--png', tmp_path / 'batch.png')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'batch.png').stat().st_size > 10_000
    assert fql(*arguments, '--out', plain).returncode == 0

    config = dataclasses.replace(
        default_config(find_task(QUICKSTART_TASK)),
        seed=seed,
        batch_size=8,
        frame_stack=3,
        augmentation=AugmentationConfig(
            brightness=0.2, hue=0.1, blur_probability=0.5, cutout_probability=0.5
        ),
    )
    data = load_training_data(config)['train']
    spec = spec_of(data, config)
    arrays = next(training_batches(data, config, step))
    key = split_seed(seed)[1]
    seen = jax.jit(batch_preparer(spec))(arrays, key, jnp.asarray(step))

    with np.load(augmented, allow_pickle=False) as file, np.load(plain) as without:
        assert without['observations'].dtype == np.uint8
        assert file['observations'].dtype == np.float32
        changed = np.abs(file['observations'] * 255 - without['observations'])
        assert (changed.max(axis=(1, 2, 3)) > 1).all()
        for name, values in seen._asdict().items():
            if values is not None:
                np.testing.assert_allclose(file[name], values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures('prepared')
@pytest.mark.parametrize(
    ('name', 'settings'), [('rebrac', {}), ('qc', {'horizon': 3, 'discount': 0.9})]
)
def test_the_batch_of_a_run_has_its_settings(fql, tmp_path, name, settings):
    agent = AGENT_CONFIGS[name](**settings)
    config = TrainConfig(
        QUICKSTART_TASK,
        seed=5,
        batch_size=8,
        frame_stack=2,
        shift_probability=0.25,
        agent=agent,
    )
    data = load_training_data(config)['train']
    spec = spec_of(data, config)
    run, out = RunFolder(tmp_path / 'run'), tmp_path / 'batch.npz'
    run.path.mkdir()
    write_spec(run, spec)
    write_json(run.data, store_of({'train': data}).checksums)
    done = fql('inspect', 'batch', run.path, '--step', 3, '--out', out)
    assert done.returncode == 0, done.stderr
    arrays = next(training_batches(data, config, 2))
    seen = jax.jit(batch_preparer(spec))(arrays, split_seed(5)[1], jnp.asarray(2))
    with np.load(out, allow_pickle=False) as file:
        for field, values in seen._asdict().items():
            if values is not None:
                np.testing.assert_allclose(file[field], values, rtol=0, atol=1e-6, err_msg=field)
        assert ('next_actions' in file) == (name == 'rebrac')
        if name == 'qc':  # The second step's reward is discounted with the run's discount.
            added = 0.9 * data.rewards[arrays['indices'] + 1] * file['valid'][:, 1]
            rewards = file['rewards'][:, 1] - file['rewards'][:, 0]
            np.testing.assert_allclose(rewards, added, atol=1e-6)
    loader = loader_config(data, config)
    assert (loader.horizon, loader.discount) == (settings.get('horizon', 1), agent.discount)
    assert (loader.shift_probability, loader.seed, loader.frame_stack) == (0.25, 5, 2)


@pytest.mark.usefixtures('prepared')
def test_the_batch_of_a_run_is_of_its_data(fql, assert_one_line, tmp_path):
    """Not of others that were prepared under the same name since."""
    config = TrainConfig(QUICKSTART_TASK, batch_size=8)
    data = load_training_data(config)['train']
    run, out = RunFolder(tmp_path / 'run'), tmp_path / 'batch.npz'
    run.path.mkdir()
    write_spec(run, spec_of(data, config))
    done = fql('inspect', 'batch', run.path, '--out', out)
    assert_one_line(done, 'has no data.json, which says what data it was trained on')
    checksums = {name: {**files} for name, files in store_of({'train': data}).checksums.items()}
    split = next(iter(checksums.values()))
    split[next(iter(split))] = '0' * 64
    write_json(run.data, checksums)
    done = fql('inspect', 'batch', run.path, '--out', out)
    assert_one_line(done, 'was trained on other data than')
    assert not out.exists()


def test_a_run_or_a_task_is_named(fql, assert_one_line, tmp_path):
    out = ('--out', tmp_path / 'batch.npz')
    assert_one_line(fql('inspect', 'batch', *out), 'name a run folder, or a task with --task')
    run = RunFolder(tmp_path / 'run')
    run.path.mkdir()
    config = TrainConfig(QUICKSTART_TASK, steps=5, online=OnlineConfig(online_steps=9))
    write_spec(run, RunSpec(config, (32, 32, 9), 'uint8', 2))
    done = fql('inspect', 'batch', run.path, '--task', QUICKSTART_TASK, *out)
    assert_one_line(done, 'name a run folder, or a task')
    done = fql('inspect', 'batch', run.path, '--seed', 1, '--hue', 0.1, *out)
    assert_one_line(done, 'leave out seed, augmentation')
    done = fql('inspect', 'batch', run.path, '--step', 6, *out)
    assert_one_line(done, 'update 6 is of the online phase', 'the number of updates before it is 5')
    done = fql('inspect', 'batch', run.path, '--step', 5, *out)  # The last one before it.
    assert 'of the online phase' not in done.stderr
    done = fql('inspect', 'batch', run.path, '--step', 0, *out)
    assert_one_line(done, '--step 0 is before the first update, which is 1')


@pytest.mark.usefixtures('prepared')
def test_senseless_augmentation_is_refused(fql, assert_one_line, tmp_path):
    arguments = ('inspect', 'batch', '--task', QUICKSTART_TASK, '--out', tmp_path / 'batch.npz')
    assert_one_line(fql(*arguments, '--hue', 0.7), 'hue', '0.5')
