"""The first action on the way to a later observation."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from encoders.pretraining.base import (
    Metrics,
    Objective,
    ObjectiveHead,
    Params,
    Windows,
    feature_scale,
    one_hot_offsets,
)


@dataclass(frozen=True)
class InverseDynamics(Objective):
    """`mean((f(z_t, z_{t+k}, k) - a_t)^2)`: the first action on the way to a later observation.

    Sources: Lamb et al. 2022, 'Guaranteed Discovery of Control-Endogenous Latent States with
    Multi-Step Inverse Models' (AC-State, arXiv 2207.08229); Islam et al. 2022, 'Agent-Controller
    Representations' (ACRO, arXiv 2211.00164), on offline data. There is no bottleneck.
    """

    @property
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """See `Objective`."""
        inputs = 2 * self.latent_size + self.horizon
        return {'inverse': ObjectiveHead(self.mlp(self.action_dim), inputs)}

    def loss(
        self,
        params: Params,
        target_params: Params,
        windows: Windows,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        del target_params, key, step
        latents = self.encode(params, windows.observations)
        later = self.encode(params, windows.later_observations)
        predicted = self.head(params, 'inverse', latents, later, one_hot_offsets(windows))
        actions = windows.actions[:, 0]
        loss = jnp.mean((predicted - actions) ** 2)
        unexplained = loss / jnp.mean(jnp.var(actions, axis=0))
        return loss, {'inverse_dynamics/unexplained': unexplained, **feature_scale(latents)}
