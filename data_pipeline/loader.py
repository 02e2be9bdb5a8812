"""Batches of transitions from a frame store, by tf.data.

    step -> rows drawn with (seed, step) -> frames of the stacks, randomly shifted -> transforms
         -> prefetch

Nothing depends on what was drawn before, so a run continues at any step. Frames are gathered from
the memory-mapped file itself, and only by TensorFlow's own ops (Python ones hang at exit).
"""

import mmap
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data_pipeline.errors import DataError
from data_pipeline.store.frame_store import ALIGNMENT, Split
from data_pipeline.transforms import PARAMETERS, Transform, transform_frames

tf.config.set_visible_devices([], 'GPU')  # GPU memory is JAX's.

ACTION_LIMIT = 1 - 1e-5

# Streams of random numbers within a step: (seed, 4 * step + stream).
_ROWS, _SHIFTS, _COIN, _COPIES = range(4)
_STREAMS = 4

# Linux reads no more for one call than the device reads ahead, by default 128 KB, drops the rest,
# and says nothing.
_READ_AHEAD_BYTES = 128 << 10

# Without it, a private mapping larger than memory is refused. Python names it from 3.13 on.
_MAP_NORESERVE = getattr(mmap, 'MAP_NORESERVE', 0x4000 if sys.platform == 'linux' else 0)


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of.

    batch_size: transitions per batch, over all processes
    frame_stack: frames per observation
    shift_pad: largest random shift, in pixels
    shift_probability: probability that a batch is shifted at all
    transforms: further changes of images, made one after the other
    copies: how many shifted copies of all rows of the split, one behind the other, its file of
        observations holds behind them; where there are any, a shifted batch reads these
    seed: of all that is drawn
    process_index, process_count: which equal part of each batch this process loads; the parts of
        all processes, in order, are the batch that one process alone would load
    """

    batch_size: int
    frame_stack: int = 1
    shift_pad: int = 3
    shift_probability: float = 0.5
    transforms: tuple[Transform, ...] = ()
    copies: int = 0
    seed: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.frame_stack < 1 or min(self.shift_pad, self.copies) < 0:
            raise DataError(f'{self}: batch_size and frame_stack are at least 1, the rest 0')
        if not 0 <= self.shift_probability <= 1:
            raise DataError(f'{self}: shift_probability is within [0, 1]')
        if not 0 <= self.process_index < self.process_count:
            raise DataError(f'{self}: process_index is within [0, process_count)')
        if self.batch_size % self.process_count:
            raise DataError(f'{self}: batch_size is a multiple of process_count')

    @property
    def local_size(self) -> int:
        """Transitions of a batch that this process loads."""
        return self.batch_size // self.process_count


def make_batches(
    split: Split,
    rewards: np.ndarray,
    masks: np.ndarray,
    config: LoaderConfig,
    start_step: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, the first one that of `start_step`; batch n depends on (seed, n) only.

    Args:
        rewards, masks: (n,) float32, one for each row of the split.

    Yields:
        Read-only arrays, for b = batch_size / process_count transitions, of a batch drawn uniformly
        with replacement:
        frames: (b, frame_stack + 1, *observation shape) as in the store; `[:, :-1]` is the stack
            of the observation, `[:, 1:]` that of the next one, both oldest first and filled up with
            the first frame of the trajectory.
        actions: (b, a) float32, clipped to +-(1 - 1e-5).
        rewards, masks: (b,) float32.
        indices: (b,) int64, rows of the split.
        shifts: (b, 2) int32, row and column of the crop in the image edge-padded by `shift_pad`;
            (shift_pad, shift_pad) is no shift.

    Raises:
        DataError: see `check_batches`.
    """
    check_batches(split, config)
    rows, shape = len(split.observations), split.observations.shape[1:]
    if len(rewards) != rows or len(masks) != rows:
        raise ValueError(f'{len(rewards)} rewards and {len(masks)} masks for {rows} rows')
    is_shifting = shifts_images(shape, config)
    frames = map_file(split.path / 'observations.npy')
    trajectories = find_trajectories(split)
    columns = {
        'actions': as_tensor(split.actions),
        'rewards': tf.constant(rewards, tf.float32),
        'masks': tf.constant(masks, tf.float32),
    }

    # Nothing in it needs AutoGraph, whose conversion would take longer than all else before the
    # first batch.
    @tf.autograph.experimental.do_not_convert
    def make_batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        indices, first, _ = sample_rows(trajectories, config, step)
        stack = stack_rows(indices, first, config.frame_stack)
        if config.copies:
            stack += rows * sample_copies(config, step)[:, None]
        if is_shifting:
            coin = flip_coin(config, step)
            shifts = tf.where(coin, sample_shifts(config, step), config.shift_pad)
            images = tf.cond(
                coin,
                lambda: gather_shifted(frames, stack, shape, shifts, config.shift_pad),
                lambda: gather_frames(frames, stack, shape),
            )
        else:
            shifts = tf.fill([config.local_size, 2], config.shift_pad)
            images = gather_frames(frames, stack, shape)
        images = transformed(images, config, step)
        batch = {name: tf.gather(values, indices) for name, values in columns.items()}
        batch['actions'] = tf.clip_by_value(batch['actions'], -ACTION_LIMIT, ACTION_LIMIT)
        return {'frames': images, **batch, 'indices': indices, 'shifts': shifts}

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # They copy the frames.
    dataset = tf.data.Dataset.counter(start_step).map(
        make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.prefetch(1).with_options(options).as_numpy_iterator()


def check_batches(split: Split, config: LoaderConfig) -> None:
    """Raises DataError if there are no such batches.

    There are fewer transitions than `batch_size`, images not larger than `shift_pad`, or transforms
    of vectors.
    """
    shape = split.observations.shape[1:]
    if config.batch_size > split.num_transitions:
        raise DataError(
            f'{split.path}: {split.num_transitions} transitions are too few for batch_size '
            f'{config.batch_size}'
        )
    if config.transforms and len(shape) != 3:
        raise DataError(f'{split.path}: observations are vectors, which no transform changes')
    if shifts_images(shape, config) and config.shift_pad >= min(shape[:2]):
        raise DataError(f'{split.path}: shift_pad {config.shift_pad} for images of {shape}')


def shifts_images(shape: tuple[int, ...], config: LoaderConfig) -> bool:
    """Whether there are batches whose observations, of this shape, are shifted."""
    return len(shape) == 3 and config.shift_pad > 0 and config.shift_probability > 0


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor: memory-mapped if it is the whole of a `.npy` file, else copied."""
    if isinstance(array, np.memmap) and array.filename is not None:
        path = Path(array.filename)
        if np.load(path, mmap_mode='r', allow_pickle=False).shape == array.shape:
            return tf.reshape(map_file(path), array.shape)
    return tf.constant(array)


def map_file(path: Path) -> tf.Tensor:
    """A `.npy` file as a tensor (n, values per row), without reading or copying it.

    The tensor holds the array and so the mapping. DLPack takes writable arrays only: the mapping is
    a private one, which can never alter the file.

    Around every page that is touched for the first time, the system would read as much as it does
    for files read in order, up to 8 MB on some disks: gigabytes for one batch of random rows. It
    reads single pages instead, and `read_ahead` the whole file in the background.
    """
    layout = np.load(path, mmap_mode='r', allow_pickle=False)
    with open(path, 'rb') as file:
        mapping = mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    if hasattr(mmap, 'MADV_RANDOM'):
        mapping.madvise(mmap.MADV_RANDOM)
    threading.Thread(target=read_ahead, args=(path,), daemon=True).start()
    values = np.frombuffer(mapping, layout.dtype, layout.size, layout.offset)
    assert values.ctypes.data % ALIGNMENT == 0  # TensorFlow does not check, and aborts.
    return tf.experimental.dlpack.from_dlpack(values.reshape(len(layout), -1).__dlpack__())


def read_ahead(path: Path) -> None:
    """Has the system read a file into its cache, if it fills no more than half of what is free."""
    if not hasattr(os, 'posix_fadvise') or path.stat().st_size > available_memory() / 2:
        return
    with open(path, 'rb') as file:
        for start in range(0, path.stat().st_size, _READ_AHEAD_BYTES):
            os.posix_fadvise(file.fileno(), start, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def available_memory() -> int:
    """Bytes that the system could give to processes and its cache; 0 where it does not tell."""
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
    except OSError:
        return 0
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith('MemAvailable:')), 0)


class Trajectories(NamedTuple):
    """Where the m trajectories of a split lie; (m,) int64 each.

    first, last: their rows
    transitions: how many there are up to the end of each
    """

    first: tf.Tensor
    last: tf.Tensor
    transitions: tf.Tensor


def find_trajectories(split: Split) -> Trajectories:
    """The trajectories of a split: all that drawing its rows needs, however many rows there are."""
    last = np.flatnonzero(split.terminals)
    # A transition begins at every row but the last ones.
    found = (last - split.lengths + 1, last, last - np.arange(len(last)))
    return Trajectories(*(tf.constant(values, tf.int64) for values in found))


def sample_rows(
    trajectories: Trajectories, config: LoaderConfig, step: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """This process's part of the batch's rows, and the first and last rows of their trajectories.

    Returns:
        (b,) int64 each.
    """
    transitions = tf.random.stateless_uniform(
        [config.batch_size],
        _stream(config, step, _ROWS),
        minval=0,
        maxval=trajectories.transitions[-1],
        dtype=tf.int64,
        alg='philox',
    )
    transitions = local_part(transitions, config)
    found = tf.searchsorted(trajectories.transitions, transitions, side='right')
    # Before a transition's row lie as many last rows, where none begins, as trajectories.
    rows = transitions + tf.cast(found, tf.int64)
    return rows, tf.gather(trajectories.first, found), tf.gather(trajectories.last, found)


def local_part(drawn: tf.Tensor, config: LoaderConfig) -> tf.Tensor:
    """This process's samples of what was drawn for the whole batch."""
    first = config.process_index * config.local_size
    return drawn[first : first + config.local_size]


def flip_coin(config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """Whether the batch of this step is shifted."""
    draw = tf.random.stateless_uniform([], _stream(config, step, _COIN), alg='philox')
    return draw < config.shift_probability


def sample_shifts(config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """(b, 2) int32 row and column offsets, uniform in 0..2 * shift_pad; this process's part."""
    offsets = tf.random.stateless_uniform(
        [config.batch_size, 2],
        _stream(config, step, _SHIFTS),
        minval=0,
        maxval=2 * config.shift_pad + 1,
        dtype=tf.int32,
        alg='philox',
    )
    return local_part(offsets, config)


def sample_copies(config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """(b,) int64: the copies that this process's samples read; 0, the rows themselves, for all of a
    batch that is not shifted, else uniform in 1..copies.
    """
    copies = tf.random.stateless_uniform(
        [config.batch_size],
        _stream(config, step, _COPIES),
        minval=1,
        maxval=config.copies + 1,
        dtype=tf.int64,
        alg='philox',
    )
    return tf.where(flip_coin(config, step), local_part(copies, config), tf.constant(0, tf.int64))


def transformed(images: tf.Tensor, config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """Images (b, t, h, w, c) after all transforms."""
    for place, transform in enumerate(config.transforms):
        draws = tf.random.stateless_uniform(
            [config.batch_size, 1 + PARAMETERS],
            tf.random.fold_in(_stream(config, step, _ROWS), place),
            alg='philox',
        )
        images = transform_frames(images, transform, local_part(draws, config))
    return images


def stack_rows(indices: tf.Tensor, first: tf.Tensor, frame_stack: int) -> tf.Tensor:
    """Rows of both stacks, clamped to their trajectory's first row.

    Args:
        indices, first: (b,) int64.

    Returns:
        (b, frame_stack + 1) int64.
    """
    offsets = tf.range(1 - frame_stack, 2, dtype=tf.int64)
    return tf.maximum(indices[:, None] + offsets, first[:, None])


def gather_frames(frames: tf.Tensor, stack: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """(b, frame_stack + 1, *shape): the frames of the rows `stack`."""
    return tf.reshape(tf.gather(frames, stack), [*stack.shape, *shape])


def gather_shifted(
    frames: tf.Tensor, stack: tf.Tensor, shape: tuple[int, ...], shifts: tf.Tensor, pad: int
) -> tf.Tensor:
    """`gather_frames` of images (h, w, c), all those of a sample shifted by its offset.

    An edge-padded crop is a gather with clamped indices. For the rows of an image that is how it is
    read from the file; for the columns, samples of one offset are cut and edged together, which is
    several times faster than a gather of pixels.
    """
    height, width, channels = shape
    row_offsets = tf.cast(shifts[:, :1] - pad, tf.int64)
    image_rows = tf.clip_by_value(tf.range(height, dtype=tf.int64) + row_offsets, 0, height - 1)
    lines = tf.reshape(stack[:, :, None] * height + image_rows[:, None, :], [stack.shape[0], -1])
    pixels = tf.reshape(frames, [-1, width * channels])
    samples = tf.dynamic_partition(tf.range(stack.shape[0]), shifts[:, 1], 2 * pad + 1)
    groups = [
        shift_columns(tf.gather(pixels, tf.gather(lines, group)), offset - pad, channels)
        for offset, group in enumerate(samples)
    ]
    return tf.reshape(tf.dynamic_stitch(samples, groups), [*stack.shape, *shape])


def shift_columns(lines: tf.Tensor, offset: int, channels: int) -> tf.Tensor:
    """(..., w * c) lines of pixels: column j is made column j + `offset`, or the edge beyond it."""
    cut = offset * channels
    if offset < 0:
        return tf.concat([lines[..., :channels]] * -offset + [lines[..., :cut]], axis=-1)
    if offset > 0:
        return tf.concat([lines[..., cut:]] + [lines[..., -channels:]] * offset, axis=-1)
    return lines


def _stream(config: LoaderConfig, step: tf.Tensor, stream: int) -> tf.Tensor:
    """The seed of one of the streams of random numbers of a step."""
    return tf.stack([tf.constant(config.seed, tf.int64), _STREAMS * step + stream])
