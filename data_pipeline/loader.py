"""Batches from a frame store, by tf.data: (stack at t, k actions, stack at t + k).

    step -> transitions drawn with (seed, step) -> rows of both stacks and of the steps between
         -> inputs, images among them randomly shifted -> prefetch

With k = 1 a sample is a transition, with k = h a chunk of h actions (`make_batches`), with k drawn
from 1..h a window for the pretraining of encoders (`make_windows`).

Inputs are what is read of a row before stacking: its frame, or the latents cached in its place.

Where an observation is several arrays by name, `inputs` and `shifts` are dictionaries of the same
names. All arrays are of the same rows; each image has its own shifts.

No draw depends on an earlier one, so that a run can continue at any step. Inputs are gathered from
the memory-mapped file, and only by TensorFlow's ops (Python ones hang at exit).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_pipeline.batch_source import Columns, Inputs, Source, map_inputs, split_source
from data_pipeline.errors import DataError
from data_pipeline.mapped_files import as_tensor
from data_pipeline.observations import map_named, named, unnamed
from data_pipeline.sample_layout import SHIFT_PAD, frame_offsets
from data_pipeline.store.frame_store import Split

ACTION_LIMIT = 1 - 1e-5

# Streams of random numbers within a step: (seed, 4 * step + stream).
_ROWS, _SHIFTS, _COIN = range(3)
_STREAMS = 4

# Seeds of runs are below it: with it added, a step has random numbers that no run's loader draws.
# The offsets of windows add it twice, the shifts of further images more often.
_MORE_SEEDS = 2**31


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of the batches.

    Attributes:
        batch_size: samples per batch, over all processes.
        frame_stack: frames per observation.
        horizon: actions between the two observations; for windows, the largest number of them.
        discount: factor per step of the rewards that are summed over a horizon of more than one.
        next_actions: whether the action of the next transition is loaded; for a horizon of one.
        shift_probability: probability that a batch is shifted at all.
        seed: of all random draws.
        process_index, process_count: which equal part of each batch this process loads; the parts
            of all processes, in order, are the batch that one process alone would load.
    """

    batch_size: int
    frame_stack: int = 1
    horizon: int = 1
    discount: float = 0.99
    next_actions: bool = False
    shift_probability: float = 0.5
    seed: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if min(self.batch_size, self.frame_stack, self.horizon) < 1:
            raise DataError(f'{self}: batch_size, frame_stack and horizon are at least 1')
        if not (0 <= self.shift_probability <= 1 and 0 <= self.discount <= 1):
            raise DataError(f'{self}: shift_probability and discount are within [0, 1]')
        if self.next_actions and self.horizon > 1:
            raise DataError(f'{self}: next_actions are for a horizon of 1')
        if not 0 <= self.process_index < self.process_count:
            raise DataError(f'{self}: process_index is within [0, process_count)')
        if self.batch_size % self.process_count:
            raise DataError(f'{self}: batch_size is a multiple of process_count')

    @property
    def local_size(self) -> int:
        """Samples of a batch that this process loads."""
        return self.batch_size // self.process_count


Tensors = dict[str, Any]
"""Arrays of a batch by name, as TensorFlow computes them; several observations by name again."""


def make_batches(
    split: Split,
    rewards: np.ndarray,
    masks: np.ndarray,
    config: LoaderConfig,
    start_step: int = 0,
) -> Iterator[dict[str, Any]]:
    """Endless batches from `start_step` on; batch n depends on (seed, n) only.

    A transition is drawn uniformly, with replacement, from all except the last `horizon - 1` of the
    split. A chunk begins there even if its trajectory ends sooner: places behind that end are not
    valid.

    Args:
        rewards, masks: (n,) float32, one for each row of the split.

    Yields:
        Read-only arrays, for b = batch_size / process_count samples that begin in row t:
        inputs: (b, number of `frame_offsets`, *input shape) as in the store: the stack at t
            is the first `frame_stack` of them, that at t + horizon the last ones, both oldest
            first. Rows before or behind t's trajectory are replaced by its first or last one.
        actions: (b, a) float32, clipped to +-(1 - 1e-5).
        rewards, masks: (b,) float32.
        indices: (b,) int64: t, a row of the split.
        shifts: (b, 2) int32, row and column of the crop in the image edge-padded by `SHIFT_PAD`;
            (SHIFT_PAD, SHIFT_PAD) is no shift.

        With a horizon h of more than one, place j being row t + j:
        actions: (b, h, a), zeros where not valid.
        rewards: (b, h), the discounted sum of those up to j; none is added where not valid.
        masks: (b, h), the minimum of those up to j; unchanged where not valid.
        valid: (b, h) float32: 1 where t + j begins a transition of t's trajectory, else 0.

        With `next_actions`, of the next transition of the split (of the last one: its own):
        next_actions: (b, a), clipped.
        next_actions_valid: (b,) float32: 1 where it belongs to t's trajectory, else 0.

    Raises:
        DataError: see `check_batches`.
    """
    check_batches(split, config)
    trajectories = find_trajectories(split)
    batch_of = batch_maker(split, trajectories, rewards, masks, config)
    starts = num_starts(split, config)
    return endless(
        lambda step: batch_of(sample_transitions(starts, config, step), step), start_step
    )


def make_windows(
    split: Split, config: LoaderConfig, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of windows from `start_step` on; batch n depends on (seed, n) only.

    A row t is drawn uniformly, with replacement, from all except the trajectories' last ones. Then
    an offset k is drawn uniformly from 1 to `horizon`, or to the number of rows left in the
    trajectory where these are fewer.

    Args:
        split: its observations are images, or several arrays with an image among them.

    Yields:
        Read-only arrays, for b = batch_size / process_count windows:
        frames: (b, frame_stack, *frame shape), the stack at t: oldest first, padded with the first
            frame of the trajectory.
        later_frames: the same at t + k.
        actions: (b, horizon, a) float32: a_t .. a_{t+k-1}, clipped to +-(1 - 1e-5); then zeros.
        offsets: (b,) int32: k.
        indices: (b,) int64: t.
        shifts, later_shifts: (b, 2) int32: rows and columns of the two stacks' crops, drawn
            separately, as in `make_batches`; one draw decides whether the batch is shifted.

    Raises:
        DataError: see `check_windows`.
    """
    check_windows(split, config)
    trajectories = find_trajectories(split)
    inputs = map_inputs(split)
    actions = as_tensor(split.actions)
    later_config = dataclasses.replace(config, seed=config.seed + _MORE_SEEDS)

    def make_batch(step: tf.Tensor) -> Tensors:
        transitions = sample_transitions(split.num_transitions, config, step)
        samples = find_rows(trajectories, transitions)
        offsets = sample_offsets(
            tf.minimum(samples.last - samples.rows, config.horizon), config, step
        )
        later = samples._replace(rows=samples.rows + offsets)
        places = tuple(range(1 - config.frame_stack, 1))
        coin = flip_coin(config, step)
        shifts = sample_all_shifts(inputs, coin, config, step)
        later_shifts = sample_all_shifts(inputs, coin, later_config, step)

        def gather(at: Samples, shifts: Any) -> Any:
            rows = stack_rows(at, places)
            return map_named(
                lambda array, offsets: gather_inputs(array, rows, coin, offsets, config),
                inputs,
                shifts,
            )

        steps = steps_from(samples.rows, offsets, config.horizon)
        return {
            'frames': gather(samples, shifts),
            'later_frames': gather(later, later_shifts),
            'actions': clipped(gather_inside(actions, steps, 0)),
            'offsets': tf.cast(offsets, tf.int32),
            'indices': samples.rows,
            'shifts': shifts,
            'later_shifts': later_shifts,
        }

    return endless(make_batch, start_step)


def endless(
    make_batch: Callable[[tf.Tensor], Tensors], start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of all steps from `start_step` on, as read-only arrays, in order."""
    return as_batches(tf.data.Dataset.counter(start_step), make_batch)


def as_batches(
    requests: tf.data.Dataset, make_batch: Callable[..., Tensors]
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of all requests, as read-only arrays, in order."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # They copy the inputs.
    # Nothing in it needs AutoGraph, whose conversion would take longer than the rest of the time
    # before the first batch.
    dataset = requests.map(
        tf.autograph.experimental.do_not_convert(make_batch),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return dataset.prefetch(1).with_options(options).as_numpy_iterator()


def check_batches(split: Split, config: LoaderConfig) -> None:
    """Raise DataError if such batches cannot be made.

    Chunks may begin in fewer transitions than `batch_size`, none of them lies within its
    trajectory, so that no value could be learnt, or images are not larger than `SHIFT_PAD`.
    """
    if config.batch_size > num_starts(split, config):
        chunks = f' and chunks of {config.horizon}' if config.horizon > 1 else ''
        raise DataError(
            f'{split.path}: {split.num_transitions} transitions are too few for batch_size '
            f'{config.batch_size}{chunks}'
        )
    if num_whole(split, config) == 0:
        longest = int(split.lengths.max()) - 1
        raise DataError(
            f'{split.path}: no trajectory has the {config.horizon} transitions of --horizon '
            f'{config.horizon}, without which no value is learnt; the longest has {longest}: give '
            f'a --horizon of at most {longest}'
        )
    for observations in named(split.observations).values():
        shape = observations.shape[1:]
        if shifts_images(shape, config) and min(shape[:2]) <= SHIFT_PAD:
            raise DataError(
                f'{split.path}: images {shape} are too small to be shifted by {SHIFT_PAD} pixels; '
                'with --shift-probability 0 they are not'
            )


def check_windows(split: Split, config: LoaderConfig) -> None:
    """Raise DataError if such windows cannot be made.

    There are no images among the observations; or see `check_batches`. A window may begin in every
    transition.
    """
    if all(array.ndim != 4 for array in named(split.observations).values()):
        raise DataError(f'{split.path}: observations are vectors, but images are needed')
    check_batches(split, dataclasses.replace(config, horizon=1))


def num_starts(split: Split, config: LoaderConfig) -> int:
    """The number of transitions where a chunk may begin, which are the first ones of the split."""
    return split.num_transitions - config.horizon + 1


def num_whole(split: Split, config: LoaderConfig) -> int:
    """The number of chunks that lie within their trajectory; see `num_starts`."""
    return int(np.maximum(split.lengths - config.horizon, 0).sum())


def batch_maker(
    split: Split,
    trajectories: 'Trajectories',
    rewards: np.ndarray,
    masks: np.ndarray,
    config: LoaderConfig,
) -> Callable[[tf.Tensor, tf.Tensor], Tensors]:
    """The function (transitions (b,) int64, step) -> their batch; see `make_batches`.

    Transitions are counted over the whole split. The step determines the random shifts.
    """
    rows = len(split.terminals)
    if len(rewards) != rows or len(masks) != rows:
        raise ValueError(f'{len(rewards)} rewards and {len(masks)} masks for {rows} rows')
    source = split_source(split, rewards, masks)

    def batch_of(transitions: tf.Tensor, step: tf.Tensor) -> Tensors:
        samples = find_rows(trajectories, transitions)
        following = None
        if config.next_actions:
            following = following_rows(trajectories, transitions)
        coin = flip_coin(config, step)
        shifts = sample_all_shifts(source.inputs, coin, config, step)
        batch = gather_samples(source, samples, following, coin, shifts, config)
        return {**batch, 'indices': samples.rows, 'shifts': shifts}

    return batch_of


def gather_samples(
    source: Source,
    samples: 'Samples',
    following: tf.Tensor | None,
    coin: tf.Tensor,
    shifts: Any,
    config: LoaderConfig,
) -> Tensors:
    """The part of a batch that comes from the samples (b,); see `make_batches`.

    Args:
        following: (b,) int64, the rows of the transitions after these; None where their actions
            are not loaded.
        coin: whether the batch is shifted.
        shifts: (b, 2) int32; by name where there are several observations.
    """
    stack = stack_rows(samples, frame_offsets(config.frame_stack, config.horizon))

    def gather(inputs: Inputs, offsets: tf.Tensor) -> tf.Tensor:
        return gather_inputs(inputs, stack, coin, offsets, config)

    batch: Tensors = {'inputs': map_named(gather, source.inputs, shifts)}
    if config.horizon == 1:
        batch |= gather_transitions(source.columns, samples.rows)
    else:
        batch |= gather_chunks(source.columns, samples, config.horizon, config.discount)
    if following is not None:
        batch |= gather_next_actions(source.columns.actions, samples, following)
    return batch


def shifts_images(shape: tuple[int, ...], config: LoaderConfig) -> bool:
    """Whether observations of this shape are shifted in some batches."""
    return len(shape) == 3 and config.shift_probability > 0


class Trajectories(NamedTuple):
    """The positions of the m trajectories of a split; (m,) int64 each.

    Attributes:
        first, last: their first and last rows.
        transitions: number of transitions up to the end of each.
    """

    first: tf.Tensor
    last: tf.Tensor
    transitions: tf.Tensor


def find_trajectories(split: Split) -> Trajectories:
    """The trajectories of a split, which are enough to draw rows from any number of rows."""
    last = np.flatnonzero(split.terminals)
    # A transition begins at every row except the last ones.
    found = (last - split.lengths + 1, last, last - np.arange(len(last)))
    return Trajectories(*(tf.constant(values, tf.int64) for values in found))


class Samples(NamedTuple):
    """The rows t where samples begin, and the first and last rows of their trajectories.

    All are (b,) int64.
    """

    rows: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor


def find_rows(trajectories: Trajectories, transitions: tf.Tensor) -> Samples:
    """The first rows of transitions (b,) int64, counted over the whole split."""
    found = tf.searchsorted(trajectories.transitions, transitions, side='right')
    # Before its row, each earlier trajectory has one last row, where no transition begins.
    rows = transitions + tf.cast(found, tf.int64)
    return Samples(rows, tf.gather(trajectories.first, found), tf.gather(trajectories.last, found))


def sample_transitions(bound: int, config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """(b,) int64, uniform in 0..bound - 1; this process's part."""
    transitions = tf.random.stateless_uniform(
        [config.batch_size],
        _stream(config, step, _ROWS),
        minval=0,
        maxval=bound,
        dtype=tf.int64,
        alg='philox',
    )
    return local_part(transitions, config)


def sample_offsets(limits: tf.Tensor, config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """(b,) int64, uniform in 1..limits (b,) int64; this process's part."""
    # The remainder of so large a number is uniform except for one part in 2^50.
    draws = tf.random.stateless_uniform(
        [config.batch_size],
        tf.stack([tf.constant(config.seed + 2 * _MORE_SEEDS, tf.int64), step]),
        minval=0,
        maxval=2**62,
        dtype=tf.int64,
        alg='philox',
    )
    return 1 + local_part(draws, config) % limits


def local_part(drawn: tf.Tensor, config: LoaderConfig) -> tf.Tensor:
    """This process's part of the draws for the whole batch."""
    first = config.process_index * config.local_size
    return drawn[first : first + config.local_size]


def flip_coin(config: LoaderConfig, step: tf.Tensor) -> tf.Tensor:
    """Whether the batch of this step is shifted."""
    draw = tf.random.stateless_uniform([], _stream(config, step, _COIN), alg='philox')
    return draw < config.shift_probability


def sample_shifts(
    shape: tuple[int, ...], coin: tf.Tensor, config: LoaderConfig, step: tf.Tensor
) -> tf.Tensor:
    """(b, 2) int32 row and column offsets, uniform in 0..2 * SHIFT_PAD; this process's part.

    They are SHIFT_PAD, which means no shift, where the coin or the shape excludes shifts.
    """
    if not shifts_images(shape, config):
        return tf.fill([config.local_size, 2], SHIFT_PAD)
    offsets = tf.random.stateless_uniform(
        [config.batch_size, 2],
        _stream(config, step, _SHIFTS),
        minval=0,
        maxval=2 * SHIFT_PAD + 1,
        dtype=tf.int32,
        alg='philox',
    )
    return tf.where(coin, local_part(offsets, config), SHIFT_PAD)


def sample_all_shifts(inputs: Any, coin: tf.Tensor, config: LoaderConfig, step: tf.Tensor) -> Any:
    """`sample_shifts` for each array of `inputs`, in the same form.

    The first image, sorted by name, has the offsets that a single image would have.
    """
    shapes = {name: array.shape for name, array in named(inputs).items()}
    seeds = dict.fromkeys(shapes, config.seed)
    _, *further = [name for name in sorted(shapes) if len(shapes[name]) == 3] or ['']
    for number, name in enumerate(further):
        # The even ones in between are those of a window's later observation.
        seeds[name] += (3 + 2 * number) * _MORE_SEEDS
    return unnamed(
        {
            name: sample_shifts(shape, coin, dataclasses.replace(config, seed=seeds[name]), step)
            for name, shape in shapes.items()
        }
    )


def stack_rows(samples: Samples, offsets: tuple[int, ...]) -> tf.Tensor:
    """(b, offsets) int64: the rows t + offset, clipped to t's trajectory."""
    rows = samples.rows[:, None] + tf.constant(offsets, tf.int64)
    return tf.clip_by_value(rows, samples.first[:, None], samples.last[:, None])


def gather_inputs(
    inputs: Inputs, rows: tf.Tensor, coin: tf.Tensor, shifts: tf.Tensor, config: LoaderConfig
) -> tf.Tensor:
    """(b, k, *shape): the inputs of rows (b, k), shifted if the coin says so."""
    if not shifts_images(inputs.shape, config):
        return gather_rows(inputs, rows)
    return tf.cond(
        coin,
        lambda: gather_shifted(inputs, rows, shifts),
        lambda: gather_rows(inputs, rows),
    )


def gather_rows(inputs: Inputs, rows: tf.Tensor) -> tf.Tensor:
    """(b, k, *shape): the inputs of rows (b, k), as they are."""
    return tf.reshape(tf.gather(inputs.values, rows), [-1, rows.shape[1], *inputs.shape])


def gather_shifted(inputs: Inputs, rows: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
    """`gather_rows` of images (h, w, c), all images of a sample shifted by its offset.

    An edge-padded crop is a gather with clamped indices. The rows of an image are gathered so from
    the file. For the columns, samples of the same offset are cut and padded together, which is
    several times faster than a gather of pixels.
    """
    height, width, channels = inputs.shape
    row_offsets = tf.cast(shifts[:, :1] - SHIFT_PAD, tf.int64)
    image_rows = tf.clip_by_value(tf.range(height, dtype=tf.int64) + row_offsets, 0, height - 1)
    lines = rows[:, :, None] * height + image_rows[:, None, :]
    lines = tf.reshape(lines, [-1, rows.shape[1] * height])
    pixels = tf.reshape(inputs.values, [-1, width * channels])
    samples = tf.dynamic_partition(tf.range(tf.shape(rows)[0]), shifts[:, 1], 2 * SHIFT_PAD + 1)
    groups = [
        shift_columns(tf.gather(pixels, tf.gather(lines, group)), offset - SHIFT_PAD, channels)
        for offset, group in enumerate(samples)
    ]
    return tf.reshape(tf.dynamic_stitch(samples, groups), [-1, rows.shape[1], *inputs.shape])


def shift_columns(lines: tf.Tensor, offset: int, channels: int) -> tf.Tensor:
    """(..., w * c) lines of pixels: column j becomes column j + `offset`, or the edge beyond it."""
    cut = offset * channels
    if offset < 0:
        return tf.concat([lines[..., :channels]] * -offset + [lines[..., :cut]], axis=-1)
    if offset > 0:
        return tf.concat([lines[..., cut:]] + [lines[..., -channels:]] * offset, axis=-1)
    return lines


def gather_transitions(columns: Columns, rows: tf.Tensor) -> Tensors:
    """The columns of rows (b,), actions clipped."""
    return {
        'actions': clipped(tf.gather(columns.actions, rows)),
        'rewards': tf.gather(columns.rewards, rows) + columns.reward_offset,
        'masks': tf.gather(columns.masks, rows),
    }


def gather_chunks(columns: Columns, samples: Samples, horizon: int, discount: float) -> Tensors:
    """The columns of the `horizon` rows from t on, accumulated; see `make_batches`."""
    steps = steps_from(samples.rows, samples.last - samples.rows, horizon)
    discounts = tf.constant(discount ** np.arange(horizon), tf.float32)
    offset = columns.reward_offset
    rewards = (gather_inside(columns.rewards, steps, -offset) + offset) * discounts
    return {
        'actions': clipped(gather_inside(columns.actions, steps, 0)),
        'rewards': accumulated(rewards, tf.add),
        'masks': accumulated(gather_inside(columns.masks, steps, 1), tf.minimum),
        'valid': tf.cast(steps.is_inside, tf.float32),
    }


def following_rows(trajectories: Trajectories, transitions: tf.Tensor) -> tf.Tensor:
    """The rows of the next transitions, as published for ReBRAC.

    After a trajectory's last transition comes the first of the next trajectory; after the last of
    all, itself.
    """
    following = tf.minimum(transitions + 1, trajectories.transitions[-1] - 1)
    return find_rows(trajectories, following).rows


def gather_next_actions(actions: tf.Tensor, samples: Samples, following: tf.Tensor) -> Tensors:
    """The actions of the following rows, and whether they belong to the samples' trajectories."""
    return {
        'next_actions': clipped(tf.gather(actions, following)),
        'next_actions_valid': tf.cast(samples.rows + 1 < samples.last, tf.float32),
    }


class Steps(NamedTuple):
    """Rows from t on, (b, horizon) int64, and which of them are used; the others are row 0."""

    rows: tf.Tensor
    is_inside: tf.Tensor


def steps_from(rows: tf.Tensor, lengths: tf.Tensor, horizon: int) -> Steps:
    """`horizon` rows from each of rows (b,) int64 on, of which the first `lengths` are used."""
    places = tf.range(horizon, dtype=tf.int64)
    is_inside = places < lengths[:, None]
    return Steps(tf.where(is_inside, rows[:, None] + places, 0), is_inside)


def gather_inside(values: tf.Tensor, steps: Steps, outside: float) -> tf.Tensor:
    """(b, horizon, ...): the values of the used rows, and `outside` in place of the others."""
    gathered = tf.gather(values, steps.rows)
    shape = [-1, steps.is_inside.shape[1], *[1] * (values.ndim - 1)]
    is_inside = tf.reshape(steps.is_inside, shape)
    return tf.where(is_inside, gathered, tf.constant(outside, values.dtype))


def accumulated(
    values: tf.Tensor, combine: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """(b, k): each of values (b, k) combined with those before it along k."""
    return tf.stack(list(itertools.accumulate(tf.unstack(values, axis=1), combine)), axis=1)


def clipped(actions: tf.Tensor) -> tf.Tensor:
    """Actions clipped just inside +-1, where a squashed Gaussian has no density."""
    return tf.clip_by_value(actions, -ACTION_LIMIT, ACTION_LIMIT)


def _stream(config: LoaderConfig, step: tf.Tensor, stream: int) -> tf.Tensor:
    """The seed of one of a step's streams of random numbers."""
    return tf.stack([tf.constant(config.seed, tf.int64), _STREAMS * step + stream])
