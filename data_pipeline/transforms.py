"""Random changes of a batch's frames on the host, by name, to be composed in any order.

Each changes a sample with a probability of its own, all its frames alike. (The random shift is not
among them: it is part of how the loader reads frames.)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import tensorflow as tf

from data_pipeline.errors import DataError

PARAMETERS = 4
"""Uniform numbers that a change of a sample may use."""

Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Transform:
    """A change of some of the samples.

    name: one of `CHANGES`
    probability: that a sample is changed
    """

    name: str
    probability: float

    def __post_init__(self) -> None:
        if self.name not in CHANGES:
            raise DataError(f'no transform {self.name!r}, only {", ".join(CHANGES)}')
        if not 0 <= self.probability <= 1:
            raise DataError(f'{self}: probability is within [0, 1]')


def transform_frames(frames: tf.Tensor, transform: Transform, draws: tf.Tensor) -> tf.Tensor:
    """Changes the samples that the draws choose.

    Args:
        frames: (b, t, h, w, c) of any type.
        draws: (b, 1 + PARAMETERS) float32, uniform in [0, 1).

    Returns:
        (b, t, h, w, c), of the same type.
    """
    chosen = tf.where(draws[:, 0] < transform.probability)
    changed = CHANGES[transform.name](
        tf.gather_nd(frames, chosen), tf.gather_nd(draws[:, 1:], chosen)
    )
    return tf.tensor_scatter_nd_update(frames, chosen, changed)


def flip(frames: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Mirrors frames (n, t, h, w, c), left to right.

    Source: 'flip' of Laskin et al. 2020, RAD (arXiv 2004.14990).
    """
    del parameters
    return tf.reverse(frames, axis=[3])


def window(frames: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Blackens all of frames (n, t, h, w, c) but a window, half to wholly as high and as wide.

    Source: 'window' of Laskin et al. 2020, RAD (arXiv 2004.14990), whose sizes differ.

    Args:
        parameters: (n, 4): for rows and for columns, the size and the place of the window.
    """
    _, times, height, width, channels = frames.shape
    rows = _inside(height, parameters[:, 0:1], parameters[:, 1:2])
    columns = tf.repeat(_inside(width, parameters[:, 2:3], parameters[:, 3:4]), channels, axis=1)
    kept = tf.cast(rows[:, None, :, None] & columns[:, None, None, :], frames.dtype)
    lines = tf.reshape(frames, [-1, times, height, width * channels]) * kept
    return tf.reshape(lines, tf.shape(frames))


CHANGES: Mapping[str, Change] = {'flip': flip, 'window': window}
"""(frames of the samples to change, their parameters (n, PARAMETERS)) -> frames, by name."""


def _inside(size: int, length: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    """(n, size) bool: the lines of a stretch, size / 2 to size long, somewhere among them."""
    lengths = tf.floor((1 + length) / 2 * (size + 1))
    first = tf.floor(place * (size - lengths + 1))
    lines = tf.range(size, dtype=tf.float32)
    return (lines >= first) & (lines < first + lengths)
