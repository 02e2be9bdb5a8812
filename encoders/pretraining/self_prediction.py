"""Prediction of later latents from the actions in between."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange

from encoders.pretraining.base import (
    CODE_SIZE,
    Metrics,
    Objective,
    ObjectiveHead,
    Params,
    Windows,
    dense,
    feature_scale,
    one_hot_offsets,
)


@dataclass(frozen=True)
class SelfPrediction(Objective):
    """`1 - cos(q(g(z_t + f(z_t, a_t .. a_{t+k-1}, k))), gbar(zbar_{t+k}))`, mean over the batch.

    f predicts the later latents, g projects them and q predicts the averaged encoder's projection.
    Both sides of the cosine are standardised over the batch. Otherwise, what all observations share
    would give a cosine near 1 before anything is learned. In BYOL, the batch normalisation in
    projector and predictor prevents that.

    Sources: Schwarzer et al. 2021, 'Data-Efficient Reinforcement Learning with Self-Predictive
    Representations' (SPR, arXiv 2007.05929), equation 4, with one transition of k steps in place of
    k of one; Grill et al. 2020, 'Bootstrap Your Own Latent' (BYOL, arXiv 2006.07733).
    """

    averaged_heads = ('projector',)

    @property
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """See `Objective`."""
        size, horizon = self.latent_size, self.horizon
        return {
            'transition': ObjectiveHead(self.mlp(size), size + horizon * self.action_dim + horizon),
            'projector': ObjectiveHead(dense(CODE_SIZE), size),
            'predictor': ObjectiveHead(self.mlp(CODE_SIZE), CODE_SIZE),
        }

    def loss(
        self,
        params: Params,
        target_params: Params,
        windows: Windows,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        del key, step
        latents = self.encode(params, windows.observations)
        actions = rearrange(windows.actions, 'b k a -> b (k a)')
        change = self.head(params, 'transition', latents, actions, one_hot_offsets(windows))
        projected = self.head(params, 'projector', latents + change)
        predicted = _direction(self.head(params, 'predictor', projected))
        later = self.encode(target_params, windows.later_observations)
        targets = _direction(jax.lax.stop_gradient(self.head(target_params, 'projector', later)))
        similarity = jnp.mean(jnp.sum(predicted * targets, axis=-1))
        return 1 - similarity, {'self_prediction/cosine': similarity, **feature_scale(latents)}


def _direction(vectors: jax.Array) -> jax.Array:
    """Vectors (b, n), standardised over the batch and scaled to length 1."""
    centred = vectors - vectors.mean(axis=0)
    standard = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0) + 1e-8)
    return standard * jax.lax.rsqrt(jnp.sum(standard**2, axis=-1, keepdims=True) + 1e-12)
