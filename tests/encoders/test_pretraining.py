"""The objectives against NumPy, and where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from encoders.cameras import VECTOR_FEATURES, observation_encoder
from encoders.pretraining import OBJECTIVES
from encoders.pretraining.base import Windows, effective_rank, feature_std
from encoders.pretraining.reconstruction import PATCH, mask_patches

BATCH, HORIZON, ACTIONS, SHAPE = 6, 3, 2, (12, 10, 6)
KEY, STEP = jax.random.key(7), jnp.asarray(0)
MOMENTUM = ('temporal_contrast', 'self_prediction')


class LinearEncoder(nn.Module):
    """A minimal encoder that is easy to repeat in NumPy: one layer on the centred pixels."""

    @nn.compact
    def __call__(self, images):
        scale = 255 if images.dtype == jnp.uint8 else 1
        return nn.Dense(8, name='dense')(images.reshape(len(images), -1) / scale - 0.5)


@pytest.fixture(scope='module')
def windows():
    rng = np.random.default_rng(0)
    offsets = np.asarray([1, 2, 3, 3, 1, 2], np.int32)
    actions = rng.uniform(-1, 1, (BATCH, HORIZON, ACTIONS)).astype(np.float32)
    return Windows(
        observations=rng.integers(0, 256, (BATCH, *SHAPE), np.uint8),
        later_observations=rng.integers(0, 256, (BATCH, *SHAPE), np.uint8),
        actions=np.where((np.arange(HORIZON) < offsets[:, None])[..., None], actions, 0),
        offsets=offsets,
    )


@pytest.fixture(scope='module')
def build(windows):
    """build(name): the objective, parameters, and a momentum target that is not their copy."""

    def make(name, **options):
        objective = OBJECTIVES[name](LinearEncoder(), SHAPE, ACTIONS, HORIZON, (16,), **options)
        shapes = jax.eval_shape(objective.init_params, KEY)
        rng = np.random.default_rng(0)
        params, other = (
            jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(x.dtype), shapes)
            for _ in range(2)
        )
        return objective, params, objective.averaged(other)

    return make


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[] if name == 'temporal_contrast' else pytest.mark.long)
        for name in OBJECTIVES
        if name != 'reconstruction'
    ],
)
def test_every_array_of_an_observation_is_learnt_from(name, windows):
    """All cameras and vectors make one latent vector, through which the gradient reaches each."""
    shapes = {'front': SHAPE, 'wrist': (6, 4, 2), 'pose': (3,)}
    encoder = observation_encoder(LinearEncoder(), shapes)
    objective = OBJECTIVES[name](encoder, shapes, ACTIONS, HORIZON, (16,))
    rng = np.random.default_rng(1)

    def observations():
        return {
            'front': rng.integers(0, 256, (BATCH, *SHAPE), np.uint8),
            'wrist': rng.integers(0, 256, (BATCH, 6, 4, 2), np.uint8),
            'pose': rng.normal(size=(BATCH, 3)).astype(np.float32),
        }

    several = windows._replace(observations=observations(), later_observations=observations())
    params = jax.jit(objective.init_params)(KEY)
    assert objective.latent_size == 2 * 8 + VECTOR_FEATURES
    assert params['encoder'].keys() == {'camera_front', 'camera_wrist', 'vectors'}
    gradient = jax.jit(
        jax.grad(lambda params: objective.loss(params, target, several, KEY, STEP)[0])
    )
    target = objective.averaged(params)
    for part in gradient(params)['encoder'].values():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(part)) > 0


def encode(params, images):
    pixels = np.asarray(images, np.float64).reshape(len(images), -1)
    return dense(
        params['encoder']['dense'], pixels / (255 if images.dtype == np.uint8 else 1) - 0.5
    )


def dense(layer, x):
    return x @ np.asarray(layer['kernel']) + np.asarray(layer.get('bias', 0))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(params, *inputs):
    x = np.concatenate(inputs, axis=-1)
    return dense(params['dense_1'], gelu(dense(params['dense_0'], x)))


def one_hot(windows):
    return np.eye(HORIZON)[windows.offsets - 1]


def inverse_dynamics(params, target, windows):
    latents = encode(params, windows.observations), encode(params, windows.later_observations)
    predicted = mlp(params['heads']['inverse'], *latents, one_hot(windows))
    return np.mean((predicted - windows.actions[:, 0]) ** 2)


def temporal_contrast(params, target, windows):
    heads = params['heads']
    codes = dense(heads['compressor'], encode(params, windows.observations))
    predicted = codes + mlp(heads['predictor'], codes)
    later = encode(target, windows.later_observations)
    targets = dense(target['heads']['compressor'], later)
    scores = np.exp(dense(heads['bilinear'], predicted) @ targets.T)
    return np.mean([-np.log(row[i] / row.sum()) for i, row in enumerate(scores)])


def self_prediction(params, target, windows):
    heads = params['heads']
    latents = encode(params, windows.observations)
    actions = windows.actions.reshape(BATCH, -1)
    later = latents + mlp(heads['transition'], latents, actions, one_hot(windows))
    predicted = mlp(heads['predictor'], dense(heads['projector'], later))
    targets = dense(target['heads']['projector'], encode(target, windows.later_observations))
    predicted, targets = ((x - x.mean(axis=0)) / x.std(axis=0) for x in (predicted, targets))
    cosines = [
        p @ t / np.linalg.norm(p) / np.linalg.norm(t)
        for p, t in zip(predicted, targets, strict=True)
    ]
    return 1 - np.mean(cosines)


def flow_bc(params, target, windows):
    noise_key, time_key = jax.random.split(KEY)
    noise = np.asarray(jax.random.normal(noise_key, (BATCH, ACTIONS)))
    time = np.asarray(jax.random.uniform(time_key, (BATCH, 1)))
    actions = windows.actions[:, 0]
    x = (1 - time) * noise + time * actions
    latents = encode(params, windows.observations)
    velocity = mlp(params['heads']['velocity'], latents, x, time)
    return np.mean((velocity - (actions - noise)) ** 2)


def reconstruction(params, target, windows, seen=None):
    decoder = params['heads']['decoder']
    seen = windows.observations if seen is None else seen
    x = gelu(mlp(decoder['mlp'], encode(params, seen)))
    patches = dense(decoder['pixels'], x.reshape(BATCH, 2, 2, -1))
    images = np.zeros((BATCH, 2 * PATCH, 2 * PATCH, SHAPE[2]))
    for row in range(2):
        for column in range(2):
            place = np.s_[:, row * PATCH :, column * PATCH :]
            pixels = patches[:, row, column].reshape(BATCH, PATCH, PATCH, SHAPE[2])
            images[place][:, :PATCH, :PATCH] = pixels
    decoded = images[:, : SHAPE[0], : SHAPE[1]]
    return np.mean((decoded - windows.observations / 255) ** 2)


REFERENCES = {
    'inverse_dynamics': inverse_dynamics,
    'temporal_contrast': temporal_contrast,
    'self_prediction': self_prediction,
    'flow_bc': flow_bc,
    'reconstruction': reconstruction,
}


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_loss_against_numpy_and_where_its_gradient_goes(build, windows, objective):
    learnt, params, target = build(objective)

    @jax.jit
    def loss_and_grads(params, target):
        return jax.value_and_grad(
            lambda *trees: learnt.loss(*trees, windows, KEY, STEP),
            argnums=(0, 1),
            has_aux=True,
        )(params, target)

    (loss, metrics), (grads, target_grads) = loss_and_grads(params, target)
    expected = REFERENCES[objective](params, target, windows)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    latents = encode(params, windows.observations)
    np.testing.assert_allclose(metrics['features/std'], latents.std(axis=0).mean(), rtol=1e-5)
    if objective == 'self_prediction':  # Centring removes this one, up to rounding.
        assert np.abs(grads['heads']['predictor']['dense_1'].pop('bias')).max() < 1e-6
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(leaf), jax.tree_util.keystr(path)
    assert (objective in MOMENTUM) == bool(jax.tree.leaves(target))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(target_grads))


def test_contrast_knows_which_observation_follows(build, windows):
    """After some steps on one batch, wrong pairs of its observations have a higher loss."""
    objective, params, _ = build('temporal_contrast')
    target = objective.averaged(params)

    @jax.jit
    def loss(params, windows):
        return objective.loss(params, target, windows, KEY, STEP)

    @jax.jit
    def descend(params):
        grads = jax.grad(lambda params: loss(params, windows)[0])(params)
        return jax.tree.map(lambda p, g: p - 0.003 * jnp.sign(g), params, grads)

    for _ in range(60):
        params = descend(params)
    right, metrics = loss(params, windows)
    assert metrics['temporal_contrast/accuracy'] == 1
    for shift in range(1, BATCH):
        later = np.roll(windows.later_observations, shift, axis=0)
        wrong, metrics = loss(params, windows._replace(later_observations=later))
        assert wrong > right + 1
        assert metrics['temporal_contrast/accuracy'] == 0


def test_masking_is_by_patches_and_seen_by_the_encoder_only(build, windows):
    images = np.random.default_rng(0).uniform(0.1, 1, (64, 20, 16, 3)).astype(np.float32)
    masked = np.asarray(jax.jit(lambda x: mask_patches(KEY, x, 0.25))(images))
    is_black = (masked == 0).all(axis=-1)
    np.testing.assert_array_equal(masked, np.where(is_black[..., None], 0, images))
    for row in range(0, 20, PATCH):
        for column in range(0, 16, PATCH):
            patch = is_black[:, row : row + PATCH, column : column + PATCH]
            assert (patch.all(axis=(1, 2)) | ~patch.any(axis=(1, 2))).all()
    assert 0.15 < is_black.mean() < 0.35

    objective, params, target = build('reconstruction', mask_ratio=0.5)
    scaled = (windows.observations / 255).astype(np.float32)

    @jax.jit
    def loss_and_seen(params):
        loss, _ = objective.loss(params, target, windows, KEY, STEP)
        return loss, mask_patches(KEY, scaled, 0.5)

    loss, seen = loss_and_seen(params)
    assert 0 < (np.asarray(seen) == scaled).mean() < 1
    unmasked = reconstruction(params, target, windows)
    masked = reconstruction(params, target, windows, np.asarray(seen))
    np.testing.assert_allclose(loss, masked, rtol=2e-5)
    assert abs(masked - unmasked) > 1e-3 * unmasked


def test_effective_rank_of_known_matrices():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    # Columns of equal length, orthogonal to each other and to the constant: a mean of 0.
    centred = np.linalg.qr(np.concatenate([np.ones((40, 1)), rng.normal(size=(40, 39))], axis=1))
    for rank in (1, 5, 16):
        latents = centred[0][:, 1 : rank + 1] @ basis[:rank] + 3
        np.testing.assert_allclose(effective_rank(jnp.asarray(latents)), rank, rtol=1e-3)
    values = np.asarray([4.0, 2, 1, 1])
    latents = centred[0][:, 1:5] * values @ basis[:4]
    p = values / values.sum()
    expected = np.prod(p**-p)  # exp of the entropy, computed in another way
    np.testing.assert_allclose(effective_rank(jnp.asarray(latents)), expected, rtol=1e-3)


def test_a_collapse_is_seen():
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(50, 8)), jnp.float32)
    assert feature_std(latents) > 0.8
    assert effective_rank(latents) > 7
    assert feature_std(jnp.ones((50, 8))) == 0
    assert effective_rank(latents[:, :1] * jnp.arange(1, 9)) < 1.01
