"""A batch of transitions, as the losses read it, and how it comes from the loader's arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from einops import rearrange


class Batch(NamedTuple):
    """Transitions (o, a, r, m, o').

    Attributes:
        observations: (b, h, w, c) images, uint8 or (augmented) float32 in [0, 1], the stack's
            frames along the channels, oldest first; or (b, d) float32 vectors.
        actions: (b, a) float32 in [-1, 1].
        rewards: (b,) float32.
        masks: (b,) float32, 0 only where the task is complete, so that nothing follows.
        next_observations: as `observations`.
    """

    observations: jax.Array
    actions: jax.Array
    rewards: jax.Array
    masks: jax.Array
    next_observations: jax.Array


def stack_frames(frames: jax.Array) -> jax.Array:
    """(b, t, h, w, c) -> (b, h, w, t * c), or (b, t, d) -> (b, t * d); oldest first."""
    if frames.ndim == 5:
        return rearrange(frames, 'b t h w c -> b h w (t c)')
    return rearrange(frames, 'b t d -> b (t d)')


def batch_from_frames(arrays: Mapping[str, Any]) -> Batch:
    """Builds the two overlapping stacks from the unique frames that the loader delivers.

    Args:
        arrays: of NumPy or JAX: `frames` (b, stack + 1, *frame shape), `actions`, `rewards`,
            `masks`; other entries are ignored.
    """
    frames = arrays['frames']
    return Batch(
        observations=stack_frames(frames[:, :-1]),
        actions=arrays['actions'],
        rewards=arrays['rewards'],
        masks=arrays['masks'],
        next_observations=stack_frames(frames[:, 1:]),
    )
