"""The flow policy of behaviour cloning."""

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
)


@dataclass(frozen=True)
class FlowBC(Objective):
    """`mean((v(z_t, x_s, s) - (a_t - noise))^2)`, `x_s = (1 - s) * noise + s * a_t`.

    Flow matching to the data's actions: the BC-flow loss of Park, Li, Levine 2025, 'Flow
    Q-Learning' (arXiv 2502.02538), alone.
    """

    @property
    def heads(self) -> Mapping[str, ObjectiveHead]:
        """See `Objective`."""
        inputs = self.latent_size + self.action_dim + 1
        return {'velocity': ObjectiveHead(self.mlp(self.action_dim), inputs)}

    def loss(
        self,
        params: Params,
        target_params: Params,
        windows: Windows,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        del target_params, step
        latents = self.encode(params, windows.observations)
        actions = windows.actions[:, 0]
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, actions.shape)
        time = jax.random.uniform(time_key, (len(actions), 1))
        x = (1 - time) * noise + time * actions
        velocity = self.head(params, 'velocity', latents, x, time)
        return jnp.mean((velocity - (actions - noise)) ** 2), feature_scale(latents)
