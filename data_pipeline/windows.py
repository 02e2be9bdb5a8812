"""Windows of trajectories from a frame store, by tf.data: what encoders are pretrained on.

    step -> rows t and offsets k drawn with (seed, step) -> stacks at t and t + k, shifted
         -> transforms

As in `data_pipeline.loader`, of whose functions it is made, nothing depends on what was drawn
before, and frames are gathered from the memory-mapped file itself.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data_pipeline.errors import DataError
from data_pipeline.loader import (
    ACTION_LIMIT,
    LoaderConfig,
    as_tensor,
    check_batches,
    find_trajectories,
    flip_coin,
    gather_frames,
    gather_shifted,
    local_part,
    map_file,
    sample_rows,
    sample_shifts,
    stack_rows,
    transformed,
)
from data_pipeline.store.frame_store import Split

# Seeds of runs lie below it: with it added, a step has random numbers that no run's loader draws.
_MORE_SEEDS = 2**31


def make_windows(
    split: Split, config: LoaderConfig, horizon: int, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of windows, the first one that of `start_step`; batch n depends on (seed, n).

    A row t is drawn uniformly, with replacement, from all but the trajectories' last ones; then an
    offset k, uniformly from 1 to `horizon`, or to the number of rows that the trajectory has left
    where these are fewer.

    Args:
        split: of images.
        horizon: the largest k.

    Yields:
        Read-only arrays, for b = batch_size / process_count windows:
        frames: (b, frame_stack, h, w, c) uint8, the stack at t: oldest first, filled up with the
            first frame of the trajectory.
        later_frames: the same at t + k.
        actions: (b, horizon, a) float32: a_t .. a_{t+k-1}, clipped to +-(1 - 1e-5); then zeros.
        offsets: (b,) int32: k.
        indices: (b,) int64: t.
        shifts, later_shifts: (b, 2) int32: rows and columns of the two stacks' crops, drawn apart,
            as in `data_pipeline.loader.make_batches`; whether there are any is drawn for the batch.

    Raises:
        DataError: see `check_windows`.
    """
    check_windows(split, config, horizon)
    shape = split.observations.shape[1:]
    frames = map_file(split.path / 'observations.npy')
    trajectories = find_trajectories(split)
    actions = as_tensor(split.actions)
    later_config = dataclasses.replace(config, seed=config.seed + _MORE_SEEDS)

    @tf.autograph.experimental.do_not_convert  # Nothing in it needs AutoGraph, which is slow.
    def make_batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
        indices, first, last = sample_rows(trajectories, config, step)
        offsets = sample_offsets(tf.minimum(last - indices, horizon), config, step)
        stack = stack_rows(indices, first, config.frame_stack)[:, :-1]
        later_stack = stack_rows(indices + offsets, first, config.frame_stack)[:, :-1]
        coin = flip_coin(config, step)
        shifts = tf.where(coin, sample_shifts(config, step), config.shift_pad)
        later_shifts = tf.where(coin, sample_shifts(later_config, step), config.shift_pad)
        images, later_images = tf.cond(
            coin,
            lambda: (
                gather_shifted(frames, stack, shape, shifts, config.shift_pad),
                gather_shifted(frames, later_stack, shape, later_shifts, config.shift_pad),
            ),
            lambda: (
                gather_frames(frames, stack, shape),
                gather_frames(frames, later_stack, shape),
            ),
        )
        return {
            'frames': transformed(images, config, step),
            'later_frames': transformed(later_images, later_config, step),
            'actions': gather_actions(actions, indices, offsets, horizon),
            'offsets': tf.cast(offsets, tf.int32),
            'indices': indices,
            'shifts': shifts,
            'later_shifts': later_shifts,
        }

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # They copy the frames.
    dataset = tf.data.Dataset.counter(start_step).map(
        make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return dataset.prefetch(1).with_options(options).as_numpy_iterator()


def check_windows(split: Split, config: LoaderConfig, horizon: int) -> None:
    """Raises DataError if there are no such windows.

    Observations are no images, `horizon` is below 1, or see `data_pipeline.loader.check_batches`.
    """
    if split.observations.ndim != 4:
        raise DataError(f'{split.path}: observations are vectors, where images are needed')
    if horizon < 1:
        raise DataError(f'horizon {horizon} is less than 1')
    check_batches(split, config)


def sample_offsets(limits: tf.Tensor, config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """(b,) int64, uniform in 1..limits (b,) int64."""
    # Of so large a number, the remainder is uniform but for one part in 2^50.
    draws = tf.random.stateless_uniform(
        [config.batch_size],
        tf.stack([tf.constant(config.seed + 2 * _MORE_SEEDS, tf.int64), step]),
        minval=0,
        maxval=2**62,
        dtype=tf.int64,
        alg='philox',
    )
    return 1 + local_part(draws, config) % limits


def gather_actions(
    actions: tf.Tensor, indices: tf.Tensor, offsets: tf.Tensor, horizon: int
) -> tf.Tensor:
    """(b, horizon, a): the actions of rows t .. t+k-1, clipped, then zeros."""
    places = tf.range(horizon, dtype=tf.int64)
    is_inside = places < offsets[:, None]
    rows = tf.where(is_inside, indices[:, None] + places, 0)
    inside = tf.clip_by_value(tf.gather(actions, rows), -ACTION_LIMIT, ACTION_LIMIT)
    return tf.where(is_inside[..., None], inside, 0.0)
