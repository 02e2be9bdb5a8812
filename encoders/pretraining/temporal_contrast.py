"""Identification of the later observation that follows, among all those of the batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from encoders.pretraining.base import (
    CODE_SIZE,
    Metrics,
    Objective,
    ObjectiveHead,
    Params,
    Windows,
    dense,
    feature_scale,
)


@dataclass(frozen=True)
class TemporalContrast(Objective):
    """InfoNCE: of all later observations of the batch, which one follows this one?

    Source: Stooke et al. 2020, 'Decoupling Representation Learning from Reinforcement Learning'
    (ATC, arXiv 2009.08319), equation 1: `l_ij = (c_i + h(c_i))^T W cbar_j` with codes c of the
    observation at t and cbar, by the averaged encoder, of the one at t + k; cross-entropy with j =
    i. There k is fixed; here it varies over the batch.
    """

    averaged_heads = ('compressor',)

    @property
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """See `Objective`."""
        return {
            'compressor': ObjectiveHead(dense(CODE_SIZE), self.latent_size),
            'predictor': ObjectiveHead(self.mlp(CODE_SIZE), CODE_SIZE),
            'bilinear': ObjectiveHead(dense(CODE_SIZE, use_bias=False), CODE_SIZE),
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
        codes = self.head(params, 'compressor', latents)
        predicted = codes + self.head(params, 'predictor', codes)
        later = self.encode(target_params, windows.later_observations)
        targets = jax.lax.stop_gradient(self.head(target_params, 'compressor', later))
        logits = self.head(params, 'bilinear', predicted) @ targets.T
        loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))
        accuracy = jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(len(logits)))
        return loss, {'temporal_contrast/accuracy': accuracy, **feature_scale(latents)}
