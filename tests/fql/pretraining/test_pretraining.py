"""The pretraining's update: the momentum target, the augmentation, and its stored settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from encoders.impala import ENCODERS
from fql.augmentation_config import AugmentationConfig
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.devices import one_device_mesh
from fql.errors import FQLError
from fql.pretraining.pretrain_config import (
    PretrainConfig,
    PretrainSpec,
    read_pretrain_spec,
    validate_pretrain_config,
    write_pretrain_spec,
)
from fql.pretraining.pretrain_learner import (
    make_pretraining_learner,
    pretraining_validation,
    window_preparer,
    windows_from_frames,
)
from fql.runs.run_folder import RunFolder
from fql.settings.train_config import differing_fields

SPEC = PretrainSpec(
    config=PretrainConfig(
        dataset='d',
        objective='temporal_contrast',
        encoder='impala_debug',
        frame_stack=2,
        horizon=3,
        hidden_dims=(8,),
        tau=0.25,
        lr=1e-3,
    ),
    image_shape=(8, 8, 3),
    action_dim=2,
)


class LinearEncoder(nn.Module):
    """Compiles at once."""

    @nn.compact
    def __call__(self, images):
        scale = 255 if images.dtype == jnp.uint8 else 1
        return nn.Dense(8, name='dense')(images.reshape(len(images), -1) / scale)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, 'impala_debug', LinearEncoder())


def begin(spec):
    learner, mesh = make_pretraining_learner(spec), one_device_mesh()
    step = make_train_step(learner, window_preparer(spec), abstract_state(learner, mesh))
    return initial_state(learner, spec.config.seed, mesh), step


@pytest.fixture(scope='module')
def arrays():
    rng = np.random.default_rng(0)
    return {
        'frames': rng.integers(0, 256, (4, 2, 8, 8, 3), np.uint8),
        'later_frames': rng.integers(0, 256, (4, 2, 8, 8, 3), np.uint8),
        'actions': rng.uniform(-1, 1, (4, 3, 2)).astype(np.float32),
        'offsets': np.asarray([1, 2, 3, 3], np.int32),
    }


def test_the_target_follows_the_parameters_after_the_step(arrays):
    state, step = begin(SPEC)
    for before, target in zip(
        jax.tree.leaves(state.params['encoder']),
        jax.tree.leaves(state.target_params['encoder']),
        strict=True,
    ):
        np.testing.assert_array_equal(before, target)
    old = jax.tree.map(np.asarray, state.target_params)
    new, metrics = step(state, [arrays])
    assert int(new.step) == 1
    assert set(old['heads']) == {'compressor'}
    for path, target in jax.tree_util.tree_leaves_with_path(new.target_params):
        online, start = new.params, old
        for entry in path:
            online, start = online[entry.key], start[entry.key]
        assert np.any(online != start), path
        np.testing.assert_allclose(target, 0.25 * online + 0.75 * start, rtol=1e-5, atol=1e-7)
    assert metrics['loss'].shape == (1,)

    validation = pretraining_validation(SPEC)(new, arrays)
    assert 1 <= validation['validation/features/effective_rank'] <= 3.01  # Of 4 samples.
    assert 'validation/temporal_contrast/accuracy' in validation


def test_the_two_observations_are_augmented_apart(arrays):
    """Equal frames at t and t + k, as the objective sees them, differ in brightness."""
    config = dataclasses.replace(SPEC.config, augmentation=AugmentationConfig(brightness=0.3))
    prepare = jax.jit(window_preparer(dataclasses.replace(SPEC, config=config)))
    same = {**arrays, 'frames': np.full_like(arrays['frames'], 128)}
    same['later_frames'] = same['frames']
    windows = jax.tree.map(np.asarray, prepare(same, jax.random.key(0), jnp.asarray(0)))
    values = np.concatenate([windows.observations, windows.later_observations]).reshape(8, -1)
    assert (values.max(axis=1) - values.min(axis=1) < 1e-6).all()
    assert len(set(np.round(values[:, 0], 4))) == 8
    assert np.abs(values - 128 / 255).max() <= 0.3


def test_stacks_have_the_oldest_frame_first(arrays):
    windows = windows_from_frames(arrays)
    assert windows.observations.shape == (4, *SPEC.stack_shape)
    np.testing.assert_array_equal(windows.observations[..., :3], arrays['frames'][:, 0])
    np.testing.assert_array_equal(windows.later_observations[..., 3:], arrays['later_frames'][:, 1])


def test_settings_round_trip_and_differ(tmp_path):
    run = RunFolder(tmp_path)
    config = dataclasses.replace(SPEC.config, augmentation=AugmentationConfig(hue=0.1))
    write_pretrain_spec(run, dataclasses.replace(SPEC, config=config))
    stored = read_pretrain_spec(run)
    assert stored == dataclasses.replace(SPEC, config=config)
    asked = dataclasses.replace(SPEC.config, steps=1, horizon=5)
    assert differing_fields(stored.config, asked) == [
        'horizon: stored 3, asked 5',
        'hue: stored 0.1, asked 0.0',
    ]


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'horizon': 0}, 'horizon'),
        ({'save_interval': 0}, 'save-interval'),
        ({'mask_ratio': 0.5}, '--objective reconstruction'),
        ({'augmentation': AugmentationConfig(hue=0.7)}, 'hue'),
    ],
)
def test_settings_without_meaning(change, text):
    validate_pretrain_config(SPEC.config)
    with pytest.raises(FQLError, match=text):
        validate_pretrain_config(dataclasses.replace(SPEC.config, **change))
