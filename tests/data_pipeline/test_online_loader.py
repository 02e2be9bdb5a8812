"""Batches of data and replay, against plain NumPy."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.files import load_arrays
from data_pipeline.loader import LoaderConfig
from data_pipeline.online_loader import OnlineBatches, draw_samples
from data_pipeline.replay import Episodes, Replay, RowLayout
from data_pipeline.sample_layout import SHIFT_PAD as PAD
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.writer import write_store

SHAPE = (8, 9, 3)
OFFSET = -1.5


@pytest.fixture
def split(tmp_path, make_arrays):
    np.savez(tmp_path / 'tiny.npz', **make_arrays(lengths=(2, 6, 4), shape=SHAPE))
    splits = npz_splits(tmp_path / 'tiny.npz')
    return write_store(tmp_path / 'store', 'tiny', splits).splits['train']


class Plain:
    """Rows as lists, and transitions found by walking: a source of samples."""

    def __init__(self, frames, actions, rewards, masks, terminals):
        self.frames, self.actions, self.terminals = frames, actions, terminals
        self.rewards, self.masks = rewards, masks
        self.transitions = [row for row in range(len(frames) - 1) if not terminals[row]]

    def sample(self, row, stack, horizon, shift):
        """(frames, actions, accumulated rewards, accumulated masks, valid) of a chunk."""
        first, last = row, row
        while first > 0 and not self.terminals[first - 1]:
            first -= 1
        while last + 1 < len(self.frames) and not self.terminals[last]:
            last += 1
        places = sorted({*range(1 - stack, 1), *range(1 - stack + horizon, 1 + horizon)})
        frames = [self.frames[min(max(row + place, first), last)] for place in places]
        if len(SHAPE) == 3:
            top, left = shift
            height, width, _ = SHAPE
            pads = ((PAD, PAD), (PAD, PAD), (0, 0))
            frames = [
                np.pad(frame, pads, mode='edge')[top : top + height, left : left + width]
                for frame in frames
            ]
        steps = [row + i if row + i < last else None for i in range(horizon)]
        actions = [np.zeros(4) if t is None else self.actions[t] for t in steps]
        rewards, masks, total, mask = [], [], 0.0, 1.0
        for i, t in enumerate(steps):
            total += 0.0 if t is None else 0.9**i * self.rewards[t]
            mask = min(mask, 1.0 if t is None else self.masks[t])
            rewards.append(total)
            masks.append(mask)
        following = self.transitions.index(row) + 1
        following = self.transitions[min(following, len(self.transitions) - 1)]
        return {
            'inputs': np.stack(frames),
            'actions': np.clip(np.stack(actions), -0.99999, 0.99999),
            'rewards': np.array(rewards),
            'masks': np.array(masks),
            'valid': np.array([t is not None for t in steps], float),
            'next_actions': np.clip(self.actions[following], -0.99999, 0.99999),
            'next_actions_valid': float(row + 1 < last),
        }


class World:
    """Two streams that are filled step by step, and the same rows as lists, rewards with OFFSET."""

    def __init__(self, path, split):
        self.rng = np.random.default_rng(0)
        self.replay = Replay(path, 'env', RowLayout(SHAPE, 'uint8', 4), 2)
        rows = len(split.terminals)
        self.rewards = self.rng.normal(size=rows).astype(np.float32)
        self.masks = self.rng.integers(0, 2, rows).astype(np.float32)
        self.data = Plain(
            np.array(split.observations), split.actions, self.rewards, self.masks, split.terminals
        )
        self.lists = [([], [], [], [], []) for _ in range(2)]
        for index in range(2):
            self.begin(index)

    def frame(self):
        return self.rng.integers(0, 256, SHAPE, np.uint8)

    def begin(self, index):
        frame = self.frame()
        self.replay.streams[index].start(frame)
        self.add(index, frame)

    def add(self, index, frame, ends=False):
        for values, value in zip(
            self.lists[index], (frame, np.zeros(4, np.float32), 0.0, 1.0, ends), strict=True
        ):
            values.append(value)

    def step(self):
        for index, stream in enumerate(self.replay.streams):
            action = self.rng.uniform(-1, 1, 4).astype(np.float32)
            reward, mask = float(np.float32(self.rng.normal())), float(self.rng.integers(0, 2))
            ends = bool(self.rng.random() < 0.3)
            frame = self.frame()
            stream.step(action, reward, mask, frame, ends)
            _, actions, rewards, masks, _ = self.lists[index]
            actions[-1], rewards[-1], masks[-1] = action, reward + OFFSET, mask
            self.add(index, frame, ends)
            if ends:
                self.begin(index)

    @property
    def sources(self):
        return [self.data, *(Plain(*lists) for lists in self.lists)]


@pytest.mark.parametrize('share', [None, 0.5, 0.25, 0.0])
@pytest.mark.parametrize('horizon', [1, 3])
def test_batches_are_what_plain_numpy_makes(tmp_path, split, share, horizon):
    config = LoaderConfig(
        batch_size=8,
        frame_stack=2,
        horizon=horizon,
        discount=0.9,
        next_actions=horizon == 1,
        seed=3,
    )
    world = World(tmp_path / 'replay', split)
    seen, shifted = set(), set()
    with (
        world.replay,
        OnlineBatches(
            split, world.rewards, world.masks, world.replay, share, config, OFFSET
        ) as batches,
    ):
        for step in range(25):
            sources = world.sources
            batches.ask([step])
            found_step, batch = batches.take()
            assert found_step == step
            # Where samples may begin, in order: data, then the streams.
            places = [
                [(i, row) for row in source.transitions[: len(source.transitions) - horizon + 1]]
                for i, source in enumerate(sources)
            ]
            data, replay = places[0], places[1] + places[2]
            from_data = int(8 * share) if share is not None else 0
            raw = np.random.Philox(key=np.array([3, step], np.uint64)).random_raw(8)
            for i, number in enumerate(raw.tolist()):
                if share is None:
                    pool = data + replay
                else:
                    pool = data if i < from_data or not replay else replay
                source, row = pool[number % len(pool)]
                assert (batch['sources'][i], batch['indices'][i]) == (source, row)
                expected = sources[source].sample(row, 2, horizon, batch['shifts'][i])
                for name in batch.keys() & expected.keys():
                    value = (
                        expected[name]
                        if horizon > 1 or name not in ('rewards', 'masks')
                        else (expected[name][0])
                    )
                    if horizon == 1 and name == 'actions':
                        value = value[0]
                    np.testing.assert_allclose(
                        batch[name][i], value, rtol=1e-6, atol=1e-6, err_msg=name
                    )
                seen.add(source)
            shifted.add(bool((batch['shifts'] != PAD).any()))
            world.step()
    assert seen == ({1, 2} if share == 0 else {0, 1, 2}) | {0}
    assert shifted == {True, False}


def test_batches_do_not_depend_on_when_they_are_taken_or_where_one_begins(tmp_path, split):
    config = LoaderConfig(batch_size=8, frame_stack=2)
    world = World(tmp_path / 'replay', split)
    rewards, masks = world.rewards, world.masks
    with world.replay:
        for _ in range(10):
            world.step()
        with OnlineBatches(split, rewards, masks, world.replay, None, config) as batches:
            batches.ask(range(5, 9))
            world.step()  # Later rows are not seen.
            first = [batches.take()[1] for _ in range(4)]
            batches.ask([9])
            after = batches.take()[1]
        with OnlineBatches(split, rewards, masks, world.replay, None, config) as batches:
            batches.ask([9])
            again = batches.take()[1]
    for name, array in after.items():
        np.testing.assert_array_equal(array, again[name])
    assert len({tuple(batch['indices']) for batch in first}) == 4


def test_parts_of_processes_are_the_batch_of_one(tmp_path):
    episodes = [Episodes(np.array([9, 19]), 20), Episodes(np.array([4]), 9)]
    whole = draw_samples(episodes, 0.5, LoaderConfig(8), 7)
    parts = [
        draw_samples(episodes, 0.5, LoaderConfig(8, process_index=i, process_count=2), 7)
        for i in range(2)
    ]
    for values, *halves in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(values, np.concatenate(halves))
    assert whole.sources.tolist() == [0] * 4 + [1] * 4


def test_uniform_draws_are_uniform():
    """Every transition of data and streams equally often, the ends and the newest row never."""
    episodes = [
        Episodes(np.array([3, 9]), 10),
        Episodes(np.array([2]), 6),
        Episodes(np.zeros(0, int), 3),
    ]
    counts = {}
    for step in range(400):
        drawn = draw_samples(episodes, None, LoaderConfig(64), step)
        for place in zip(drawn.sources.tolist(), drawn.rows.tolist(), strict=True):
            counts[place] = counts.get(place, 0) + 1
    expected = {(0, row) for row in (0, 1, 2, 4, 5, 6, 7, 8)}
    expected |= {(1, row) for row in (0, 1, 3, 4)} | {(2, 0), (2, 1)}
    assert counts.keys() == expected
    mean = 400 * 64 / len(expected)
    assert max(abs(count - mean) for count in counts.values()) < 5 * np.sqrt(mean)


REFERENCE = Path(__file__).resolve().parents[1] / 'parity' / 'data' / 'replay_buffer.npz'


def test_the_replay_holds_what_the_reference_buffer_does(tmp_path):
    """Every added transition is in both, in order, until the buffer is full.

    The reference keeps both ends of each transition; here each is an episode of one step.
    """
    arrays = load_arrays(Path(os.environ.get('FQL_REFERENCE') or REFERENCE))
    if 'added/rewards' not in arrays:
        pytest.skip('the reference that was named is of something else')
    added = {
        name: arrays[f'added/{name}']
        for name in ('observations', 'next_observations', 'actions', 'rewards', 'masks')
    }
    count = len(added['rewards'])
    layout = RowLayout(added['observations'].shape[1:], 'float32', added['actions'].shape[1])
    with Replay(tmp_path / 'replay', 'env', layout, 1) as replay:
        (stream,) = replay.streams
        for i in range(count):
            stream.start(added['observations'][i])
            stream.step(
                added['actions'][i],
                added['rewards'][i],
                added['masks'][i],
                added['next_observations'][i],
                True,
            )
            assert stream.episodes.transitions == i + 1
        rows, first, last = stream.episodes.find(np.arange(count))
        for name in ('observations', 'actions', 'rewards', 'masks'):
            np.testing.assert_array_equal(stream.read(name, 0, stream.rows)[rows], added[name])
        following = stream.read('observations', 0, stream.rows)[last]
        np.testing.assert_array_equal(following, added['next_observations'])
        assert (last == first + 1).all()
