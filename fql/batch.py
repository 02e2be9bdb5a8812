"""A batch of transitions, as the losses read it, and how it comes from the loader's arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from einops import rearrange

LOADED_FIELDS = ('inputs', 'actions', 'rewards', 'masks')
"""The loader's arrays that every agent reads."""


class Batch(NamedTuple):
    """Transitions (o, a, r, m, o'), or the same over h steps.

    Where an observation is several arrays, `observations` and `next_observations` have these by
    name.

    Attributes:
        observations: (b, h, w, c) images, uint8 or (augmented) float32 in [0, 1], the stack's
            frames along the channels, oldest first; or (b, d) float32 vectors.
        actions: (b, a) float32 in [-1, 1]; over h steps, (b, h, a).
        rewards: (b,) float32; over h steps, (b, h): their discounted sums up to each step.
        masks: (b,) float32, 0 only where the task is complete, so that nothing follows; over h
            steps, (b, h): 0 from the first step on where it was complete.
        next_observations: as `observations`, one step later or h steps later.
        valid: (b, h) float32, 1 for steps within the trajectory; only over h steps.
        next_actions: (b, a) float32, the data's action at `next_observations`.
        next_actions_valid: (b,) float32, 0 where that is another trajectory's.
    """

    observations: Any
    actions: jax.Array
    rewards: jax.Array
    masks: jax.Array
    next_observations: Any
    valid: jax.Array | None = None
    next_actions: jax.Array | None = None
    next_actions_valid: jax.Array | None = None


def stack_frames(frames: jax.Array) -> jax.Array:
    """(b, t, h, w, c) -> (b, h, w, t * c), or (b, t, d) -> (b, t * d); oldest first."""
    if frames.ndim == 5:
        return rearrange(frames, 'b t h w c -> b h w (t c)')
    return rearrange(frames, 'b t d -> b (t d)')


def batch_from_inputs(arrays: Mapping[str, Any], horizon: int = 1) -> Batch:
    """Build the two stacks, which may overlap, from the distinct inputs that the loader delivers.

    Args:
        arrays: of NumPy or JAX: `inputs` (b, n, *shape), frames or cached latents, or several
            arrays of these by name, whose first entries are the stack of the observation and whose
            last ones that of the next observation; `actions`, `rewards`, `masks`, and what else
            `Batch` has; other entries are ignored.
        horizon: steps between the two observations.
    """
    inputs = arrays['inputs']
    count = jax.tree.leaves(inputs)[0].shape[1]
    stack = max(count - horizon, count // 2)
    others = {name: arrays[name] for name in Batch._fields if name in arrays}
    return Batch(
        **{
            **others,
            'observations': jax.tree.map(lambda x: stack_frames(x[:, :stack]), inputs),
            'next_observations': jax.tree.map(
                lambda x: stack_frames(x[:, count - stack :]), inputs
            ),
        }
    )
