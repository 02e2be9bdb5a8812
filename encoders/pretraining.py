"""Self-supervised objectives that train an encoder on windows of trajectories.

Each loss is a pure function of networks, parameters, windows and a key, and returns
`(scalar, metrics)`. `params` is `{'encoder': ..., 'heads': {name: ...}}`; `target_params` has the
averaged part of the same tree for the objectives with a momentum target (`target_part`), and is
empty for the others. No loss sends a gradient into `target_params`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from encoders.mlp import KERNEL_INIT, MLP

CODE_SIZE = 128
"""Width of what temporal contrast and self-prediction compare."""
PATCH = 8
"""Height and width of the patches that are masked and decoded, in pixels."""

Params = dict[str, Any]
Metrics = dict[str, jax.Array]


class Windows(NamedTuple):
    """Parts of trajectories, from t to t + k.

    Attributes:
        observations: the stack at t, (b, h, w, c), uint8 or float32 in [0, 1], oldest first.
        later_observations: the same at t + k.
        actions: (b, horizon, a) float32: a_t .. a_{t+k-1}, then zeros.
        offsets: (b,) int32: k, in 1..horizon.
    """

    observations: jax.Array
    later_observations: jax.Array
    actions: jax.Array
    offsets: jax.Array


@dataclass(frozen=True)
class Head:
    """A module from vectors (b, inputs), and the width of these."""

    module: nn.Module
    inputs: int


@dataclass(frozen=True)
class PretrainingNetworks:
    """The modules of an objective; their parameters are given to each call.

    Attributes:
        objective: a key of `OBJECTIVES`.
        encoder: images to latents.
        heads: by name.
        mask_ratio: part of the patches that reconstruction does not see.
    """

    objective: str
    encoder: nn.Module
    heads: Mapping[str, Head]
    mask_ratio: float

    def encode(self, params: Params, images: jax.Array) -> jax.Array:
        """Latents (b, d) of images (b, h, w, c)."""
        return cast(jax.Array, self.encoder.apply({'params': params['encoder']}, images))

    def head(self, params: Params, name: str, *inputs: jax.Array) -> jax.Array:
        """The output of a head for vectors (b, n), which are joined."""
        variables = {'params': params['heads'][name]}
        joined = jnp.concatenate(inputs, axis=-1)
        return cast(jax.Array, self.heads[name].module.apply(variables, joined))


class PatchDecoder(nn.Module):
    """Latents to images, patch by patch: an MLP to a vector for each patch, a layer to its pixels.

    Attributes:
        hidden_dims: widths of the hidden layers.
        image_shape: (h, w, c).
    """

    hidden_dims: Sequence[int]
    image_shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """(b, d) float -> (b, h, w, c) float."""
        height, width, channels = self.image_shape
        rows, columns = -(-height // PATCH), -(-width // PATCH)
        x = MLP((*self.hidden_dims, rows * columns * CODE_SIZE), name='mlp')(latents)
        x = rearrange(nn.gelu(x), 'b (r q d) -> b r q d', r=rows, q=columns)
        x = nn.Dense(PATCH * PATCH * channels, kernel_init=KERNEL_INIT, name='pixels')(x)
        x = rearrange(x, 'b r q (i j c) -> b (r i) (q j) c', i=PATCH, j=PATCH)
        return x[:, :height, :width]


def make_networks(
    objective: str,
    encoder: nn.Module,
    image_shape: tuple[int, int, int],
    action_dim: int,
    horizon: int,
    hidden_dims: Sequence[int],
    mask_ratio: float = 0.0,
) -> PretrainingNetworks:
    """The networks of an objective.

    Args:
        objective: a key of `OBJECTIVES`.
        image_shape: (h, w, c) of a stack.
        action_dim: size of an action.
        horizon: largest k of a window.
        hidden_dims: widths of the hidden layers of each head.
        mask_ratio: see `reconstruction_loss`.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    latents, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), images)
    size = latents.shape[-1]

    def mlp(*features: int) -> MLP:
        return MLP((*hidden_dims, *features))

    heads = {
        'inverse_dynamics': {'inverse': Head(mlp(action_dim), 2 * size + horizon)},
        'temporal_contrast': {
            'compressor': Head(nn.Dense(CODE_SIZE, kernel_init=KERNEL_INIT), size),
            'predictor': Head(mlp(CODE_SIZE), CODE_SIZE),
            'bilinear': Head(
                nn.Dense(CODE_SIZE, use_bias=False, kernel_init=KERNEL_INIT), CODE_SIZE
            ),
        },
        'self_prediction': {
            'transition': Head(mlp(size), size + horizon * action_dim + horizon),
            'projector': Head(nn.Dense(CODE_SIZE, kernel_init=KERNEL_INIT), size),
            'predictor': Head(mlp(CODE_SIZE), CODE_SIZE),
        },
        'flow_bc': {'velocity': Head(mlp(action_dim), size + action_dim + 1)},
        'reconstruction': {'decoder': Head(PatchDecoder(hidden_dims, image_shape), size)},
    }[objective]
    return PretrainingNetworks(objective, encoder, heads, mask_ratio)


def init_params(key: jax.Array, networks: PretrainingNetworks, images: jax.Array) -> Params:
    """Fresh parameters, `{'encoder': ..., 'heads': {name: ...}}`, all float32.

    Args:
        key: a typed PRNG key.
        images: an example, (b, h, w, c) uint8; its values are not used.
    """
    encoder_key, heads_key = jax.random.split(key)
    return {
        'encoder': networks.encoder.init(encoder_key, images[:1])['params'],
        'heads': {
            name: head.module.init(jax.random.fold_in(heads_key, i), jnp.zeros((1, head.inputs)))[
                'params'
            ]
            for i, (name, head) in enumerate(networks.heads.items())
        },
    }


def target_part(objective: str, params: Params) -> Params:
    """The part of the parameters that the objective's momentum target averages, if it has one."""
    head = {'temporal_contrast': 'compressor', 'self_prediction': 'projector'}.get(objective)
    if head is None:
        return {}
    return {'encoder': params['encoder'], 'heads': {head: params['heads'][head]}}


def inverse_dynamics_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((f(z_t, z_{t+k}, k) - a_t)^2)`: the first action on the way to a later observation.

    Sources: Lamb et al. 2022, 'Guaranteed Discovery of Control-Endogenous Latent States with
    Multi-Step Inverse Models' (AC-State, arXiv 2207.08229); Islam et al. 2022, 'Agent-Controller
    Representations' (ACRO, arXiv 2211.00164), who do so on offline data. No bottleneck.
    """
    del target_params, key
    latents = networks.encode(params, windows.observations)
    later = networks.encode(params, windows.later_observations)
    predicted = networks.head(params, 'inverse', latents, later, _one_hot_offsets(windows))
    actions = windows.actions[:, 0]
    loss = jnp.mean((predicted - actions) ** 2)
    unexplained = loss / jnp.mean(jnp.var(actions, axis=0))
    return loss, {'inverse_dynamics/unexplained': unexplained, **_feature_scale(latents)}


def temporal_contrast_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE: of all later observations of the batch, which one follows this one?

    Source: Stooke et al. 2020, 'Decoupling Representation Learning from Reinforcement Learning'
    (ATC, arXiv 2009.08319), equation 1: `l_ij = (c_i + h(c_i))^T W cbar_j` with codes c of the
    observation at t and cbar, by the averaged encoder, of the one at t + k; cross-entropy with j =
    i. There k is fixed; here it varies over the batch.
    """
    del key
    latents = networks.encode(params, windows.observations)
    codes = networks.head(params, 'compressor', latents)
    predicted = codes + networks.head(params, 'predictor', codes)
    later = networks.encode(target_params, windows.later_observations)
    targets = jax.lax.stop_gradient(networks.head(target_params, 'compressor', later))
    logits = networks.head(params, 'bilinear', predicted) @ targets.T
    loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(len(logits)))
    return loss, {'temporal_contrast/accuracy': accuracy, **_feature_scale(latents)}


def self_prediction_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`1 - cos(q(g(z_t + f(z_t, a_t .. a_{t+k-1}, k))), gbar(zbar_{t+k}))`, mean over the batch.

    f predicts the later latents, g projects them and q predicts the averaged encoder's projection.
    Both sides of the cosine are standardised over the batch. What all observations have in common
    would otherwise give a cosine near 1 before anything is learned; the batch normalisation in
    BYOL's projector and predictor prevents that.

    Sources: Schwarzer et al. 2021, 'Data-Efficient Reinforcement Learning with Self-Predictive
    Representations' (SPR, arXiv 2007.05929), equation 4, with one transition of k steps in place of
    k of one; Grill et al. 2020, 'Bootstrap Your Own Latent' (BYOL, arXiv 2006.07733).
    """
    del key
    latents = networks.encode(params, windows.observations)
    actions = rearrange(windows.actions, 'b k a -> b (k a)')
    change = networks.head(params, 'transition', latents, actions, _one_hot_offsets(windows))
    projected = networks.head(params, 'projector', latents + change)
    predicted = _direction(networks.head(params, 'predictor', projected))
    later = networks.encode(target_params, windows.later_observations)
    targets = _direction(jax.lax.stop_gradient(networks.head(target_params, 'projector', later)))
    similarity = jnp.mean(jnp.sum(predicted * targets, axis=-1))
    return 1 - similarity, {'self_prediction/cosine': similarity, **_feature_scale(latents)}


def flow_bc_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((v(z_t, x_s, s) - (a_t - noise))^2)`, `x_s = (1 - s) * noise + s * a_t`.

    Flow matching to the data's actions: the BC-flow loss of Park, Li, Levine 2025, 'Flow
    Q-Learning' (arXiv 2502.02538), alone.
    """
    del target_params
    latents = networks.encode(params, windows.observations)
    actions = windows.actions[:, 0]
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, actions.shape)
    time = jax.random.uniform(time_key, (len(actions), 1))
    x = (1 - time) * noise + time * actions
    velocity = networks.head(params, 'velocity', latents, x, time)
    return jnp.mean((velocity - (actions - noise)) ** 2), _feature_scale(latents)


def reconstruction_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """`mean((decoder(z_t) - o_t)^2)` over all pixels, in [0, 1]: an autoencoder, as a baseline.

    With `mask_ratio` above 0, the encoder sees images of which patches, drawn for each sample and
    the same for all its frames, are black: He et al. 2022, 'Masked Autoencoders' (arXiv
    2111.06377), with another encoder and decoder.
    """
    del target_params
    images = windows.observations
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    seen = mask_patches(key, images, networks.mask_ratio) if networks.mask_ratio else images
    latents = networks.encode(params, seen)
    decoded = networks.head(params, 'decoder', latents)
    return jnp.mean((decoded - images) ** 2), _feature_scale(latents)


def mask_patches(key: jax.Array, images: jax.Array, ratio: float) -> jax.Array:
    """Images (b, h, w, c) of which each patch is black with probability `ratio`."""
    count, height, width, _ = images.shape
    grid = (count, -(-height // PATCH), -(-width // PATCH))
    is_seen = jax.random.uniform(key, grid) >= ratio
    pixels = repeat(is_seen, 'b r q -> b (r i) (q j) 1', i=PATCH, j=PATCH)
    return images * pixels[:, :height, :width]


Loss = Callable[
    [PretrainingNetworks, Params, Params, Windows, jax.Array], tuple[jax.Array, Metrics]
]

OBJECTIVES: dict[str, Loss] = {
    'inverse_dynamics': inverse_dynamics_loss,
    'temporal_contrast': temporal_contrast_loss,
    'self_prediction': self_prediction_loss,
    'flow_bc': flow_bc_loss,
    'reconstruction': reconstruction_loss,
}


def pretraining_loss(
    networks: PretrainingNetworks,
    params: Params,
    target_params: Params,
    windows: Windows,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """The loss of the networks' objective; the metrics are scalars, `loss` among them."""
    loss, metrics = OBJECTIVES[networks.objective](networks, params, target_params, windows, key)
    return loss, {'loss': loss, **metrics}


def feature_std(latents: jax.Array) -> jax.Array:
    """Standard deviation over the batch, mean over the dimensions of latents (b, d)."""
    return jnp.mean(jnp.std(latents, axis=0))


def effective_rank(latents: jax.Array) -> jax.Array:
    """`exp(entropy of p)`, p the singular values of the centred latents (b, d) over their sum.

    From 1 (all on a line; 0/0 if all are equal) to min(b - 1, d). Source: Roy and Vetterli 2007,
    'The effective rank: a measure of effective dimensionality'.
    """
    values = jnp.linalg.svd(latents - latents.mean(axis=0), compute_uv=False)
    p = values / values.sum()
    return jnp.exp(jnp.sum(jax.scipy.special.entr(p)))


def _feature_scale(latents: jax.Array) -> Metrics:
    return {'features/std': feature_std(latents)}


def _one_hot_offsets(windows: Windows) -> jax.Array:
    return jax.nn.one_hot(windows.offsets - 1, windows.actions.shape[1])


def _direction(vectors: jax.Array) -> jax.Array:
    """Vectors (b, n), standardised over the batch and scaled to length 1."""
    centred = vectors - vectors.mean(axis=0)
    standard = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + 1e-8)
    return standard * jax.lax.rsqrt(jnp.sum(standard**2, axis=-1, keepdims=True) + 1e-12)
