"""Which encoder each network reads, and which losses train it.

`shared` (default): one encoder. The critic loss trains it, the BC-flow loss too if
`bc_flow_trains_encoder`, the one-step policy never. The target network has an averaged encoder of
its own, whose latents of o' also feed the policy there: each observation is encoded once.

`separate`: an encoder for the critic, the flow and the one-step policy each, as in the reference.

A frozen encoder is a shared one that no loss trains: both observations are encoded with it, and the
target network has none. As its latents never change, a batch may hold them in place of images: then
observations are (b, d), float16 or float32, and are not encoded (`fql.training.latent_cache`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fql.batch import Batch
from fql.config import AgentConfig
from fql.networks import Networks, Params, encoder_of


class Latents(NamedTuple):
    """What each network sees of a batch, all (b, d) float.

    Attributes:
        critic, bc_flow, one_step_policy: of o, with the gradient the setting allows.
        next_target_critic, next_one_step_policy: of o', never with gradient.
    """

    critic: jax.Array
    bc_flow: jax.Array
    one_step_policy: jax.Array
    next_target_critic: jax.Array
    next_one_step_policy: jax.Array


def encode_observations(
    networks: Networks, config: AgentConfig, params: Params, network: str, observations: jax.Array
) -> jax.Array:
    """The latents (b, d) that `network` ('critic', 'bc_flow', 'one_step_policy') reads.

    Args:
        observations: images (b, h, w, c), or vectors (b, d), which are latents already.
    """
    if networks.encoder is None:
        return observations
    if observations.ndim == 2:
        assert config.encoder_mode == 'frozen'
        return observations.astype(jnp.float32)
    return networks.encode(params['encoders'][encoder_of(config, network)], observations)


def encode_batch(
    params: Params, target_params: Params, networks: Networks, config: AgentConfig, batch: Batch
) -> Latents:
    """Encodes both sides of a batch, each observation once per set of encoder parameters."""

    def encode(params: Params, network: str, observations: jax.Array) -> jax.Array:
        return encode_observations(networks, config, params, network, observations)

    stop = jax.lax.stop_gradient
    critic = encode(params, 'critic', batch.observations)
    next_params = params if config.encoder_mode == 'frozen' else target_params
    next_target_critic = stop(encode(next_params, 'critic', batch.next_observations))
    if networks.encoder is None or config.encoder_sharing == 'shared':
        return Latents(
            critic=critic,
            bc_flow=critic if config.bc_flow_trains_encoder else stop(critic),
            one_step_policy=stop(critic),
            next_target_critic=next_target_critic,
            next_one_step_policy=next_target_critic,
        )
    return Latents(
        critic=critic,
        bc_flow=encode(params, 'bc_flow', batch.observations),
        one_step_policy=encode(params, 'one_step_policy', batch.observations),
        next_target_critic=next_target_critic,
        next_one_step_policy=stop(encode(params, 'one_step_policy', batch.next_observations)),
    )
