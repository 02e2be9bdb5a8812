"""From a pretraining's stored settings to its learner, and from the loader's arrays to windows.

The state has `params = {'encoder': ..., 'heads': ...}`; checkpoints, the training loop and exact
resumption are those of training. The objectives themselves are in `encoders.pretraining`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from encoders.cameras import observation_encoder
from encoders.impala import ENCODERS
from encoders.pretraining import OBJECTIVES
from encoders.pretraining.base import Objective, Windows, effective_rank
from fql.augmentation import augment_frames
from fql.batch import stack_frames
from fql.compiled import Arrays, Prepare
from fql.devices import compiler_options
from fql.learner import Learner, Metrics, TrainState
from fql.pretraining.pretrain_config import PretrainSpec

WINDOW_FIELDS = ('frames', 'later_frames', 'actions', 'offsets')
"""The loader's arrays that an update reads."""


def objective_of(spec: PretrainSpec) -> Objective:
    """The encoder, the objective's heads and its loss."""
    config = spec.config
    options = {'mask_ratio': config.mask_ratio} if config.objective == 'reconstruction' else {}
    return OBJECTIVES[config.objective](
        encoder=observation_encoder(ENCODERS[config.encoder], spec.stack_shape, config.cameras),
        observation_shape=spec.stack_shape,
        action_dim=spec.action_dim,
        horizon=config.horizon,
        hidden_dims=config.hidden_dims,
        tau=config.tau,
        **options,
    )


def make_pretraining_learner(spec: PretrainSpec) -> Learner:
    """The objective and its optimiser."""
    return Learner(objective_of(spec), optax.adam(spec.config.lr))


def window_preparer(spec: PretrainSpec) -> Prepare:
    """The function from the loader's arrays to the augmented windows of an update."""
    augmentation = spec.config.augmentation

    def prepare(arrays: Arrays, key: jax.Array, step: jax.Array) -> Windows:
        if not augmentation.is_on:
            return windows_from_frames(arrays)
        # The stacks at t and at t + k are augmented independently.
        both = jax.tree.map(
            lambda *frames: jnp.concatenate(frames), arrays['frames'], arrays['later_frames']
        )
        both, size = augment_frames(both, augmentation, key, step), len(arrays['offsets'])
        frames = jax.tree.map(lambda array: array[:size], both)
        later = jax.tree.map(lambda array: array[size:], both)
        return windows_from_frames({**arrays, 'frames': frames, 'later_frames': later})

    return prepare


def pretraining_validation(spec: PretrainSpec) -> Callable[[TrainState, Arrays], Metrics]:
    """The jitted function (state, the loader's arrays) -> metrics, without augmentation.

    They also have the effective rank of the latents, which with their standard deviation shows
    a collapse.
    """
    learner, objective = make_pretraining_learner(spec), objective_of(spec)

    def validate(state: TrainState, arrays: Arrays) -> Metrics:
        windows = windows_from_frames(arrays)
        rank = effective_rank(objective.encode(state.params, windows.observations))
        metrics = learner.validate(state, windows)
        return {**metrics, 'validation/features/effective_rank': rank}

    return jax.jit(validate, compiler_options=compiler_options())


def windows_from_frames(arrays: Arrays) -> Windows:
    """Stack the frames of the loader's windows, NumPy or JAX."""
    return Windows(
        observations=jax.tree.map(stack_frames, arrays['frames']),
        later_observations=jax.tree.map(stack_frames, arrays['later_frames']),
        actions=arrays['actions'],
        offsets=arrays['offsets'],
    )
