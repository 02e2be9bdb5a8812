"""The agent that a run's specification describes."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fql.devices import state_shardings
from fql.networks import Networks, make_networks
from fql.run_folder import RunSpec
from fql.train_state import TrainState, init_state


def agent_networks(spec: RunSpec) -> Networks:
    """The agent's modules."""
    return make_networks(spec.config.agent, spec.action_dim, spec.images)


def initial_state(spec: RunSpec, mesh: Mesh) -> TrainState:
    """The state before the first update, on the devices of `mesh`."""
    shardings = state_shardings(_shapes(spec), mesh, spec.config.shard_params)
    return jax.jit(lambda: _init(spec), out_shardings=shardings)()


def abstract_state(spec: RunSpec, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to be restored onto the devices of `mesh`."""
    shapes = _shapes(spec)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh, spec.config.shard_params),
    )


def _shapes(spec: RunSpec) -> TrainState:
    return jax.eval_shape(lambda: _init(spec))


def _init(spec: RunSpec) -> TrainState:
    observations = jnp.zeros((1, *spec.observation_shape), spec.observation_dtype)
    return init_state(
        spec.config.seed, agent_networks(spec), spec.config.agent, observations, spec.action_dim
    )
