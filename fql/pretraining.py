"""Pretraining of an encoder: its state, and one gradient step.

The state is a `TrainState` with `params = {'encoder': ..., 'heads': ...}`, so that checkpoints, the
training loop and exact resumption are those of training. The objectives themselves are in
`encoders.pretraining`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from encoders.impala import ENCODERS
from encoders.pretraining import (
    PretrainingNetworks,
    Windows,
    effective_rank,
    init_params,
    make_networks,
    pretraining_loss,
    target_part,
)
from fql.augmentation import augment_frames
from fql.batch import stack_frames
from fql.devices import abstract_on, compiler_options, run_once_options, state_shardings
from fql.losses import Metrics
from fql.train_state import TrainState, split_seed
from fql.train_step import Arrays, TrainStep, scan_updates
from fql.training.pretrain_config import PretrainConfig, PretrainSpec

WINDOW_FIELDS = ('frames', 'later_frames', 'actions', 'offsets')
"""What an update reads of the loader's arrays."""


def pretraining_networks(spec: PretrainSpec) -> PretrainingNetworks:
    """The encoder and the objective's heads."""
    config = spec.config
    return make_networks(
        config.objective,
        ENCODERS[config.encoder],
        spec.stack_shape,
        spec.action_dim,
        config.horizon,
        config.hidden_dims,
        config.mask_ratio,
    )


def initial_pretrain_state(spec: PretrainSpec, mesh: Mesh) -> TrainState:
    """The state before the first update, on the devices of `mesh`; the target starts as a copy."""
    shardings = state_shardings(_shapes(spec), mesh, shard_params=False)
    options = run_once_options()
    return jax.jit(lambda: _init(spec), out_shardings=shardings, compiler_options=options)()


def abstract_pretrain_state(spec: PretrainSpec, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, to be restored onto the devices of `mesh`."""
    return abstract_on(_shapes(spec), mesh, shard_params=False)


def _shapes(spec: PretrainSpec) -> TrainState:
    return jax.eval_shape(lambda: _init(spec))


def _init(spec: PretrainSpec) -> TrainState:
    init_key, key = split_seed(spec.config.seed)
    images = jnp.zeros((1, *spec.stack_shape), jnp.uint8)
    params = init_params(init_key, pretraining_networks(spec), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        target_params=jax.tree.map(jnp.copy, target_part(spec.config.objective, params)),
        opt_state=optax.adam(spec.config.lr).init(params),
        key=key,
    )


def pretrain_update(
    networks: PretrainingNetworks, config: PretrainConfig, state: TrainState, windows: Windows
) -> tuple[TrainState, Metrics]:
    """One gradient step on a batch, with the draws of `fold_in(state.key, state.step)`.

    The momentum target, where the objective has one, averages the parameters after the step.
    """
    key = jax.random.fold_in(state.key, state.step)
    loss = jax.grad(
        lambda params: pretraining_loss(networks, params, state.target_params, windows, key),
        has_aux=True,
    )
    grads, metrics = loss(state.params)
    updates, opt_state = optax.adam(config.lr).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        target_params=optax.incremental_update(
            target_part(config.objective, params), state.target_params, config.tau
        ),
        opt_state=opt_state,
    )
    return new_state, {**metrics, 'update/grad_norm': optax.tree.norm(grads)}


def make_pretrain_step(spec: PretrainSpec, mesh: Mesh) -> TrainStep:
    """The jitted function (state, batches of windows) -> (state, metrics), on these devices."""
    networks, config = pretraining_networks(spec), spec.config

    def one_update(state: TrainState, arrays: Arrays) -> tuple[TrainState, Metrics]:
        windows = windows_from_frames(_augmented(arrays, config, state))
        return pretrain_update(networks, config, state, windows)

    return scan_updates(one_update, abstract_pretrain_state(spec, mesh))


def make_pretrain_validation(
    spec: PretrainSpec,
) -> Callable[[TrainState, Arrays], Metrics]:
    """The jitted metrics of the loader's arrays, without an update: each `validation/NAME`.

    They have the effective rank of the latents besides, which with their standard deviation tells
    a collapse.
    """
    networks = pretraining_networks(spec)

    def validate(state: TrainState, arrays: Arrays) -> Metrics:
        windows = windows_from_frames(arrays)
        key = jax.random.fold_in(state.key, state.step)
        _, metrics = pretraining_loss(networks, state.params, state.target_params, windows, key)
        rank = effective_rank(networks.encode(state.params, windows.observations))
        metrics = {**metrics, 'features/effective_rank': rank}
        return {f'validation/{name}': value for name, value in metrics.items()}

    return jax.jit(validate, compiler_options=compiler_options())


def windows_from_frames(arrays: Arrays) -> Windows:
    """Stacks the frames of the arrays of `data_pipeline.loader.make_windows`, NumPy or JAX."""
    return Windows(
        observations=stack_frames(arrays['frames']),
        later_observations=stack_frames(arrays['later_frames']),
        actions=arrays['actions'],
        offsets=arrays['offsets'],
    )


def _augmented(arrays: Arrays, config: PretrainConfig, state: TrainState) -> Arrays:
    """The arrays with their frames augmented, those at t and those at t + k apart."""
    if not config.augmentation.is_on:
        return arrays
    both = jnp.concatenate([arrays['frames'], arrays['later_frames']])
    frames, later = jnp.split(
        augment_frames(both, config.augmentation, state.key, state.step), 2, axis=0
    )
    return {**arrays, 'frames': frames, 'later_frames': later}
