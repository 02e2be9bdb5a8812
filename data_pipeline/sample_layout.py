"""What a sample of the loader consists of, without TensorFlow."""

SHIFT_PAD = 3
"""Largest random shift of an image, in pixels, as in the reference implementation."""


def frame_offsets(frame_stack: int, horizon: int) -> tuple[int, ...]:
    """The rows, relative to t, of a sample's `inputs`: those of both stacks, each once, in order.

    The first `frame_stack` are the stack at t, the last ones that at t + horizon. There are
    frame_stack + min(frame_stack, horizon) of them.
    """
    now = range(1 - frame_stack, 1)
    return tuple(sorted({*now, *(offset + horizon for offset in now)}))
