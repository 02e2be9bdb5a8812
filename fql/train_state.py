"""The training state: all that an update reads and returns."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fql.config import AgentConfig
from fql.networks import Networks, Params, encoder_of, init_params


@struct.dataclass
class TrainState:
    """State of training after `step` updates.

    Attributes:
        step: () int32, the number of updates made. Update n is the one made from step n.
        params: online parameters, see `fql.networks.init_params`.
        target_params: averaged critic and the averaged encoder it reads:
            `{'encoders': {name: ...}, 'critic': ...}`.
        opt_state: Adam's.
        key: () typed PRNG key of the run; update n draws from `fold_in(key, n)`.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: Any
    key: jax.Array


def make_optimizer(config: AgentConfig) -> optax.GradientTransformation:
    """One Adam for all parameters."""
    return optax.adam(config.lr)


def critic_params(config: AgentConfig, params: Params) -> Params:
    """The part of the parameters that the target network averages."""
    name = encoder_of(config, 'critic')
    encoders = {name: params['encoders'][name]} if params['encoders'] else {}
    return {'encoders': encoders, 'critic': params['critic']}


def run_key(seed: int) -> jax.Array:
    """The key that all updates of a run draw from, `TrainState.key`."""
    return _split_seed(seed)[1]


def init_state(
    seed: int,
    networks: Networks,
    config: AgentConfig,
    observations: jax.Array,
    action_dim: int,
) -> TrainState:
    """The state before the first update; the target starts as a copy of the critic."""
    init_key, key = _split_seed(seed)
    params = init_params(init_key, networks, config, observations, action_dim)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies, so that a donated state never holds one buffer twice.
        target_params=jax.tree.map(jnp.copy, critic_params(config, params)),
        opt_state=make_optimizer(config).init(params),
        key=key,
    )


def _split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial parameters and of the updates."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return init_key, key
