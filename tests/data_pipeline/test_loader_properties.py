"""The loader's index arithmetic against plain Python, for trajectories of any lengths."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loader import (
    LoaderConfig,
    Samples,
    find_rows,
    find_trajectories,
    local_part,
    make_batches,
    sample_transitions,
    stack_rows,
)
from data_pipeline.sample_layout import frame_offsets
from data_pipeline.store.frame_store import Split

LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=8)
STACKS = st.integers(1, 6)


@st.composite
def divisions(draw, most: int = 6) -> tuple[int, int]:
    """A number of processes, at most `most`, and a batch size that it divides."""
    processes, local = draw(st.integers(1, most)), draw(st.integers(1, 5))
    return processes, processes * local


def make_split(lengths: list[int], path: Path = Path('unused')) -> Split:
    """Numbered rows: observation, action and qpos of row i are made from i."""
    rows = sum(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(lengths) - 1] = True
    observations = np.arange(rows, dtype=np.uint8).reshape(rows, 1, 1, 1)
    actions = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    return Split('train', path, observations, actions, terminals, {})


def plain_trajectories(lengths: list[int]) -> list[list[int]]:
    """The rows of each trajectory."""
    rows = itertools.count()
    return [[next(rows) for _ in range(length)] for length in lengths]


def plain_stack(trajectory: list[int], place: int, frame_stack: int) -> list[int]:
    """Rows of both stacks of the transition at a place of a trajectory, by walking back."""
    stack = [trajectory[place]]
    for back in range(1, frame_stack):
        stack.insert(0, trajectory[place - back] if place >= back else trajectory[0])
    return [*stack, trajectory[place + 1]]


@given(LENGTHS)
def test_rows_of_trajectories(lengths):
    split, trajectories = make_split(lengths), plain_trajectories(lengths)
    assert split.lengths.tolist() == lengths
    assert split.first_rows.tolist() == [rows[0] for rows in trajectories for _ in rows]
    assert split.valid_rows.tolist() == [row for rows in trajectories for row in rows[:-1]]
    assert split.valid_rows.dtype == split.first_rows.dtype == np.int64
    assert split.num_transitions == len(split.valid_rows)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 10**6))
def test_every_transition_can_be_drawn_with_the_ends_of_its_trajectory(lengths, step):
    split = make_split(lengths)
    config = LoaderConfig(batch_size=20 * split.num_transitions)
    drawn = sample_transitions(split.num_transitions, config, tf.constant(step, tf.int64))
    samples = find_rows(find_trajectories(split), drawn)
    rows, first, last = (values.numpy() for values in samples)
    assert rows.dtype == first.dtype == last.dtype == np.int64
    ends = {row: (t[0], t[-1]) for t in plain_trajectories(lengths) for row in t[:-1]}
    assert set(rows.tolist()) <= set(ends)
    # Each is drawn, except with a probability of e^-20.
    assert len(set(rows.tolist())) >= len(ends) - 1
    found = zip(first.tolist(), last.tolist(), strict=True)
    assert list(found) == [ends[row] for row in rows.tolist()]


@settings(deadline=None)  # TensorFlow's first call is slow.
@given(LENGTHS, STACKS)
def test_stacks_stay_in_their_trajectory(lengths, frame_stack):
    split = make_split(lengths)
    transitions = tf.range(split.num_transitions, dtype=tf.int64)
    samples = find_rows(find_trajectories(split), transitions)
    stacks = stack_rows(samples, frame_offsets(frame_stack, 1))
    assert stacks.dtype == tf.int64
    assert stacks.numpy().tolist() == [
        plain_stack(rows, place, frame_stack)
        for rows in plain_trajectories(lengths)
        for place in range(len(rows) - 1)
    ]


@settings(deadline=None)
@given(STACKS, st.integers(1, 9))
def test_the_first_frames_are_one_stack_and_the_last_ones_the_other(frame_stack, horizon):
    offsets = np.array(frame_offsets(frame_stack, horizon))
    stack = np.arange(1 - frame_stack, 1)
    np.testing.assert_array_equal(offsets[:frame_stack], stack)
    np.testing.assert_array_equal(offsets[-frame_stack:], stack + horizon)
    assert len(offsets) == frame_stack + min(frame_stack, horizon)
    assert set(offsets) == {*stack, *(stack + horizon)}


@settings(deadline=None)
@given(LENGTHS, STACKS, st.integers(1, 9))
def test_stacks_behind_an_end_repeat_the_last_row(lengths, frame_stack, horizon):
    rows = tf.range(sum(lengths), dtype=tf.int64)
    ends = [(t[0], t[-1]) for t in plain_trajectories(lengths) for _ in t]
    samples = Samples(rows, *(tf.constant(values, tf.int64) for values in zip(*ends, strict=True)))
    stacks = stack_rows(samples, frame_offsets(frame_stack, horizon)).numpy()
    for row, (first, last) in enumerate(ends):
        expected = [
            min(max(row + offset, first), last) for offset in frame_offsets(frame_stack, horizon)
        ]
        assert stacks[row].tolist() == expected


@settings(deadline=None)
@given(divisions())
def test_parts_of_all_processes_are_the_batch(division):
    processes, batch_size = division
    drawn = tf.range(batch_size)
    parts = [
        local_part(drawn, LoaderConfig(batch_size, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    assert tf.concat(parts, axis=0).numpy().tolist() == list(range(batch_size))
    assert {len(part) for part in parts} == {batch_size // processes}


# A loader is built for every process, which takes some tenths of a second.
@settings(max_examples=6, deadline=None)
@given(LENGTHS, STACKS, divisions(most=3), st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_batches_of_all_processes_are_the_batch(lengths, frame_stack, division, seed, step):
    processes, batch_size = division
    # Enough transitions for a batch.
    lengths = [*lengths, batch_size + 1]
    with tempfile.TemporaryDirectory() as folder:
        split = make_split(lengths, Path(folder))
        np.save(split.path / 'observations.npy', split.observations)
        labels = np.arange(sum(lengths), dtype=np.float32)

        def batch(**part: int) -> dict[str, np.ndarray]:
            config = LoaderConfig(
                batch_size, frame_stack=frame_stack, shift_probability=0, seed=seed, **part
            )
            return next(make_batches(split, labels, -labels, config, step))

        whole = batch()
        parts = [batch(process_index=i, process_count=processes) for i in range(processes)]
        for name, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
        stacks = {
            rows[place]: plain_stack(rows, place, frame_stack)
            for rows in plain_trajectories(lengths)
            for place in range(len(rows) - 1)
        }
        expected = [stacks[row] for row in whole['indices'].tolist()]
        assert whole['inputs'].reshape(batch_size, -1).tolist() == expected
        np.testing.assert_array_equal(whole['rewards'], whole['indices'])
        np.testing.assert_array_equal(whole['masks'], -whole['indices'])
