"""How trained parameters act: the one-step policy, and the flow policy it was distilled from."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fql.config import AgentConfig
from fql.latents import encode_observations
from fql.losses import clip_actions, flow_actions
from fql.networks import Networks, Params
from fql.training.evaluation import Policy

PolicyName = Literal['one_step', 'bc_flow']
Act = Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_act(networks: Networks, config: AgentConfig, name: PolicyName) -> Act:
    """The jitted function (params, key, observations, episodes, timesteps) -> actions.

    `one_step` is FQL's policy; `bc_flow` the behaviour-cloned flow policy. The noise of a sample
    depends on (key, episode, timestep) only, so that an episode does not depend on which others
    run beside it.
    """

    @jax.jit
    def act(
        params: Params,
        key: jax.Array,
        observations: jax.Array,
        episodes: jax.Array,
        timesteps: jax.Array,
    ) -> jax.Array:
        def sample_noise(episode: jax.Array, timestep: jax.Array) -> jax.Array:
            sample_key = jax.random.fold_in(jax.random.fold_in(key, episode), timestep)
            return jax.random.normal(sample_key, (networks.bc_flow.action_dim,))

        noise = jax.vmap(sample_noise)(episodes, timesteps)
        if name == 'bc_flow':
            latents = encode_observations(networks, config, params, 'bc_flow', observations)
            return flow_actions(params, networks, config, latents, noise)
        latents = encode_observations(networks, config, params, 'one_step_policy', observations)
        return clip_actions(networks.one_step(params, latents, noise))

    return act


def make_policy(act: Act, params: Params, seed: int) -> Policy:
    """A policy for rollouts: (observations, episodes, timesteps) -> actions, all NumPy arrays."""
    key = jax.random.key(seed)

    def policy(observations: np.ndarray, episodes: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        return np.asarray(act(params, key, *map(jnp.asarray, (observations, episodes, timesteps))))

    return policy
