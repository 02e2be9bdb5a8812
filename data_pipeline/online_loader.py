"""Batches of the online phase: from the data and from a replay that grows, by tf.data.

    step, rows in the replay -> samples drawn with (seed, step) -> a queue
        -> inputs, randomly shifted, as of `data_pipeline.loader` -> batch

The samples of update n depend only on (seed, n, rows in the replay when it was requested).
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf

from data_pipeline.batch_source import Columns, Inputs, Source, split_source
from data_pipeline.loader import (
    LoaderConfig,
    Samples,
    Tensors,
    as_batches,
    flip_coin,
    gather_samples,
    sample_all_shifts,
)
from data_pipeline.mapped_files import map_file
from data_pipeline.observations import array_name, map_named, named, unnamed
from data_pipeline.replay import Episodes, Replay, Stream
from data_pipeline.store.frame_store import Split

_MOST_REQUESTS = 2**20


class Drawn(NamedTuple):
    """The samples of a batch, (b,) each.

    Attributes:
        sources: int32: 0 for the data, 1.. for the streams of the replay.
        rows, first, last: int64: the rows where samples begin, and the first and last rows of
            their episodes.
        following: int64: the rows of the next transitions; see `loader.following_rows`.
    """

    sources: np.ndarray
    rows: np.ndarray
    first: np.ndarray
    last: np.ndarray
    following: np.ndarray


def draw_samples(
    sources: Sequence[Episodes], share: float | None, config: LoaderConfig, step: int
) -> Drawn:
    """The samples of one update, with replacement; this process's part.

    Chunks may begin in all except the last `horizon - 1` transitions of each source.

    Args:
        sources: the data, then the streams of the replay.
        share: None: uniform over data and replay together. Else the share of the batch, its first
            rows, that comes from the data; the rest comes from the replay. While the replay has
            no transitions, all rows come from the data.
    """
    counts = [max(0, episodes.transitions - config.horizon + 1) for episodes in sources]
    ends = np.cumsum(counts)
    low = np.zeros(config.batch_size, np.int64)
    high = np.full(config.batch_size, ends[-1])
    if share is not None:
        from_data = int(config.batch_size * share) if ends[-1] > ends[0] else config.batch_size
        high[:from_data] = ends[0]
        low[from_data:] = ends[0]
    # Counter-based, so that no draw depends on an earlier one. The remainder of numbers below 2^64
    # is uniform except for one part in 2^30 even with billions of rows.
    raw = np.random.Philox(key=np.array([config.seed, step], np.uint64)).random_raw(len(low))
    picks = low + (raw % (high - low).astype(np.uint64)).astype(np.int64)
    first = config.process_index * config.local_size
    picks = picks[first : first + config.local_size]

    chosen = np.searchsorted(ends, picks, side='right')
    found = np.zeros((4, len(picks)), np.int64)
    for index, episodes in enumerate(sources):
        places = np.flatnonzero(chosen == index)
        if len(places):
            transitions = picks[places] - (ends[index] - counts[index])
            following = np.minimum(transitions + 1, episodes.transitions - 1)
            found[:, places] = (*episodes.find(transitions), episodes.find(following)[0])
    return Drawn(chosen.astype(np.int32), *found)


class OnlineBatches:
    """Batches that are requested as the replay grows; a context manager.

    A batch is made in the background after it is requested by `ask`, and returned by `take`.
    """

    def __init__(
        self,
        split: Split,
        rewards: np.ndarray,
        masks: np.ndarray,
        replay: Replay,
        share: float | None,
        config: LoaderConfig,
        reward_offset: float = 0.0,
    ) -> None:
        """Map the data.

        Args:
            rewards, masks: of the data.
            share: see `draw_samples`.
            reward_offset: added to the rewards of the replay; those of the data have it already.
        """
        self._data = split_source(split, rewards, masks)
        self._episodes = Episodes(np.flatnonzero(split.terminals), len(split.terminals))
        self._replay, self._share, self._config = replay, share, config
        self._reward_offset = reward_offset
        self._capacity = 0
        self._queue: tf.queue.FIFOQueue | None = None
        self._batches: Iterator[dict[str, np.ndarray]] = iter(())
        self._asked: deque[int] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, steps: Iterable[int]) -> None:
        """Request the batches of these updates, made from the current rows."""
        # All requested batches are taken before the replay grows again.
        if self._capacity != self._replay.capacity:
            assert not self._asked
            self._start()
        sources = [self._episodes, *(stream.episodes for stream in self._replay.streams)]
        assert self._queue is not None
        for step in steps:
            self._queue.enqueue([step, *draw_samples(sources, self._share, self._config, step)])
            self._asked.append(step)

    def take(self) -> tuple[int, dict[str, np.ndarray]]:
        """The oldest request's update and batch. See `loader.make_batches`, except for

        sources: (b,) int32: 0 where a sample is from the data, else 1 + the replay's stream.
        indices: (b,) int64: rows in the samples' sources.
        """
        step = self._asked.popleft()
        return step, next(self._batches)

    def _start(self) -> None:
        """Map the replay as it is now."""
        self._stop()
        streams = self._replay.streams
        sources = [self._data]
        sources += [stream_source(each, self._data.inputs, self._reward_offset) for each in streams]
        size = self._config.local_size
        types = [tf.int64, tf.int32] + [tf.int64] * 4
        shapes: list[list[int]] = [[]] + [[size]] * 5
        self._queue = queue = tf.queue.FIFOQueue(_MOST_REQUESTS, types, shapes)
        make_batch = mixture_maker(sources, self._config)
        requests = tf.data.Dataset.counter().map(
            tf.autograph.experimental.do_not_convert(lambda _: tuple(queue.dequeue()))
        )
        self._batches = as_batches(requests, make_batch)
        self._capacity = self._replay.capacity

    def _stop(self) -> None:
        if self._queue is not None:
            # A thread that waits for the next request would prevent the process from ending.
            self._queue.close(cancel_pending_enqueues=True)
            self._queue, self._batches = None, iter(())
            # The old mappings, each of which holds a file open, are in reference cycles.
            gc.collect()


def stream_source(stream: Stream, like: Any, reward_offset: float) -> Source:
    """The rows of a stream as tensors, including rows that will be appended.

    Args:
        like: the data's inputs, see `map_inputs`; the stream's have the same names and shapes.
        reward_offset: see `Columns`.
    """

    def column(name: str) -> tf.Tensor:
        return map_file(stream.path / f'{name}.npy', growing=True)

    def inputs(name: str, shape: tuple[int, ...]) -> Inputs:
        is_latents = stream.layout.latents is not None
        return Inputs(column('latents' if is_latents else array_name(name)), shape)

    columns = Columns(
        column('actions'),
        tf.reshape(column('rewards'), [-1]),
        tf.reshape(column('masks'), [-1]),
        reward_offset,
    )
    return Source(
        unnamed({name: inputs(name, array.shape) for name, array in named(like).items()}), columns
    )


def mixture_maker(sources: Sequence[Source], config: LoaderConfig) -> Callable[..., Tensors]:
    """The function (step, *drawn) -> batch of samples from several sources."""

    def make_batch(
        step: tf.Tensor,
        chosen: tf.Tensor,
        rows: tf.Tensor,
        first: tf.Tensor,
        last: tf.Tensor,
        following: tf.Tensor,
    ) -> Tensors:
        coin = flip_coin(config, step)
        shifts = sample_all_shifts(sources[0].inputs, coin, config, step)
        groups = tf.dynamic_partition(tf.range(config.local_size), chosen, len(sources))
        parts = []
        for source, group in zip(sources, groups, strict=True):
            samples = Samples(*(tf.gather(values, group) for values in (rows, first, last)))
            next_rows = tf.gather(following, group) if config.next_actions else None
            group_shifts = map_named(partial(tf.gather, indices=group), shifts)
            parts.append(gather_samples(source, samples, next_rows, coin, group_shifts, config))

        def join(*arrays: tf.Tensor) -> tf.Tensor:
            return tf.dynamic_stitch(groups, list(arrays))

        batch = {name: map_named(join, *(part[name] for part in parts)) for name in parts[0]}
        return {**batch, 'sources': chosen, 'indices': rows, 'shifts': shifts}

    return make_batch
