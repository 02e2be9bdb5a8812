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
            `{'encoders': {name: ...}, 'critic': ...}`; no encoder where that is frozen.
        opt_state: of `make_optimizer`, for the `trainable_params`.
        key: () typed PRNG key of the run; update n draws from `fold_in(key, n)`.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: Any
    key: jax.Array


def make_optimizer(config: AgentConfig) -> optax.GradientTransformation:
    """One Adam for all trainable parameters; when fine-tuning, another one for the encoders.

    The encoders' Adam has a learning rate of its own, and does nothing, moments included, in the
    updates before `encoder_unfreeze_step`.
    """
    if config.encoder_mode != 'finetune':
        return optax.adam(config.lr)
    encoder_adam = optax.adam(config.lr * config.encoder_lr_multiplier)
    return optax.partition(
        {
            'heads': optax.adam(config.lr),
            'encoders': optax.conditionally_mask(
                encoder_adam, lambda updates: updates >= config.encoder_unfreeze_step
            ),
        },
        # One label for each part, so that every leaf below has one.
        lambda params: {name: 'encoders' if name == 'encoders' else 'heads' for name in params},
    )


def trainable_params(config: AgentConfig, params: Params) -> Params:
    """The part of the parameters that is differentiated and optimised: all but a frozen encoder."""
    if config.encoder_mode == 'frozen':
        return {name: tree for name, tree in params.items() if name != 'encoders'}
    return params


def critic_params(config: AgentConfig, params: Params) -> Params:
    """The part of the parameters that the target network averages."""
    encoders = {}
    if params['encoders'] and config.encoder_mode != 'frozen':
        name = encoder_of(config, 'critic')
        encoders = {name: params['encoders'][name]}
    return {'encoders': encoders, 'critic': params['critic']}


def run_key(seed: int) -> jax.Array:
    """The key that all updates of a run draw from, `TrainState.key`."""
    return split_seed(seed)[1]


def init_state(
    seed: int,
    networks: Networks,
    config: AgentConfig,
    observations: jax.Array,
    action_dim: int,
    encoder: Params | None = None,
) -> TrainState:
    """The state before the first update; the target starts as a copy of the critic.

    Args:
        encoder: the parameters that every encoder starts with, in place of fresh ones.
    """
    init_key, key = split_seed(seed)
    params = init_params(init_key, networks, config, observations, action_dim)
    if encoder is not None:
        params['encoders'] = {name: jax.tree.map(jnp.copy, encoder) for name in params['encoders']}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies, so that a donated state never holds one buffer twice.
        target_params=jax.tree.map(jnp.copy, critic_params(config, params)),
        opt_state=make_optimizer(config).init(trainable_params(config, params)),
        key=key,
    )


def split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial parameters and of the updates."""
    init_key, key = jax.random.split(jax.random.key(seed))
    return init_key, key
