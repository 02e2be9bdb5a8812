"""The agent that a run's specification describes."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fql.devices import abstract_on, run_once_options, state_shardings
from fql.networks import Networks, Params, make_networks
from fql.train_state import TrainState, init_state
from fql.training.run_folder import RunSpec


def agent_networks(spec: RunSpec) -> Networks:
    """The agent's modules."""
    return make_networks(spec.config.agent, spec.action_dim, spec.images)


def initial_state(spec: RunSpec, mesh: Mesh, encoder: Params | None = None) -> TrainState:
    """The state before the first update, on the devices of `mesh`.

    Args:
        encoder: NumPy arrays, the parameters that the encoder starts with if not fresh ones.
    """
    shardings = state_shardings(_shapes(spec), mesh, spec.config.shard_params)
    init = jax.jit(
        lambda encoder: _init(spec, encoder),
        out_shardings=shardings,
        compiler_options=run_once_options(),
    )
    return init(encoder)


def abstract_state(spec: RunSpec, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to be restored onto the devices of `mesh`."""
    return abstract_on(_shapes(spec), mesh, spec.config.shard_params)


def _shapes(spec: RunSpec) -> TrainState:
    return jax.eval_shape(lambda: _init(spec))


def _init(spec: RunSpec, encoder: Params | None = None) -> TrainState:
    observations = jnp.zeros((1, *spec.observation_shape), spec.observation_dtype)
    return init_state(
        spec.config.seed,
        agent_networks(spec),
        spec.config.agent,
        observations,
        spec.action_dim,
        encoder,
    )
