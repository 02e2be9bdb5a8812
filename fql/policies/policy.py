"""How trained parameters act: an agent's policy, for rollouts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fql.agents.base import Agent
from fql.errors import FQLError
from fql.learner import Params
from fql.policies.rollouts import Policy
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import validate_config

Act = Callable[[Params, jax.Array, Any, jax.Array, jax.Array], jax.Array]
"""(params, key, observations (b, ...), or several by name, episodes and timesteps (b,) int32) ->
actions (b, h, a), in [-1, 1]; see `make_act`."""


def make_act(agent: Agent, name: str = '') -> Act:
    """The jitted function by which an agent acts.

    Draws for a sample depend on (key, episode, timestep) only, so that an episode does not
    depend on which others run beside it.

    Args:
        name: one of the agent's policies; its first one if empty.

    Raises:
        FQLError: the agent has no such policy.
    """
    if name and name not in agent.policies:
        raise FQLError(
            f'agent {agent.config.name} has no policy {name}; it has {", ".join(agent.policies)}'
        )
    policy = name or agent.policies[0]

    @jax.jit
    def act(
        params: Params,
        key: jax.Array,
        observations: Any,
        episodes: jax.Array,
        timesteps: jax.Array,
    ) -> jax.Array:
        def sample_key(episode: jax.Array, timestep: jax.Array) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(key, episode), timestep)

        keys = jax.vmap(sample_key)(episodes, timesteps)
        return agent.sample_actions(params, observations, keys, policy)

    return act


def make_policy(act: Act, params: Params, seed: int) -> Policy:
    """A policy for rollouts: (observations, episodes, timesteps) -> actions, all NumPy arrays."""
    key = jax.random.key(seed)

    def policy(observations: Any, episodes: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        arrays = jax.tree.map(jnp.asarray, (observations, episodes, timesteps))
        return np.asarray(act(params, key, *arrays))

    return policy


def with_candidates(spec: RunSpec, count: int, policy: str = '') -> RunSpec:
    """The run with another number of actions from which the critics choose.

    Args:
        policy: one of the agent's policies; its first one if empty.

    Raises:
        FQLError: the agent or the policy does not choose, or the number is out of bounds.
    """
    agent = spec.config.agent
    names = {entry.name for entry in dataclasses.fields(agent)}
    changes: dict[str, Any] = {
        name: count for name in ('candidates', 'num_samples') if name in names
    }
    if not changes:
        raise FQLError(
            f'agent {agent.name} does not choose among candidates; leave out --candidates'
        )
    first, *others = agent_of(spec).policies
    if policy in others:
        raise FQLError(
            f'policy {policy} does not choose among candidates, {first} does; leave out '
            '--candidates'
        )
    config = dataclasses.replace(spec.config, agent=dataclasses.replace(agent, **changes))
    validate_config(config)
    return dataclasses.replace(spec, config=config)
