"""Minari's HDF5 files, compared with the episodes that they were written from."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.observations import observation_keys
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.writer import write_store

Episodes = list[dict[str, np.ndarray]]
KEYS = observation_keys(['observations/camera', 'joints'])


def make_episodes(lengths: tuple[int, ...] = (4, 1, 0, 12)) -> Episodes:
    """The last one is terminated, the others truncated."""
    rng = np.random.default_rng(0)
    return [
        {
            'observations/camera': rng.integers(1, 256, (steps + 1, 12, 10, 3), np.uint8),
            'observations/joints': rng.normal(size=(steps + 1, 3)),
            'actions': rng.uniform(-1, 1, (steps, 2)),
            'rewards': rng.normal(size=steps),
            'terminations': np.arange(steps) == (11 if steps == 12 else -1),
            'truncations': np.arange(steps) == steps - 1,
        }
        for steps in lengths
    ]


def write_episodes(path: Path, episodes: Episodes) -> Path:
    with h5py.File(path, 'w') as file:
        for number, episode in enumerate(episodes):
            for key, array in episode.items():
                file.create_dataset(f'episode_{number}/{key}', data=array)
            file[f'episode_{number}/infos'] = np.zeros(len(episode['rewards']))
    return path


def prepared(tmp_path: Path, episodes: Episodes, keys: Any = KEYS) -> Any:
    source = write_episodes(tmp_path / 'main_data.hdf5', episodes)
    return write_store(tmp_path / 'store', 'd', file_splits(source, 'd', keys), overwrite=True)


def test_every_step_is_a_transition(tmp_path):
    episodes = make_episodes()
    split = prepared(tmp_path, episodes).splits['train']
    assert split.lengths.tolist() == [5, 2, 13]
    starts = split.valid_rows
    for name in ('camera', 'joints'):
        arrays = [
            episode[f'observations/{name}'] for episode in episodes if len(episode['actions'])
        ]
        seen = np.concatenate([array[:-1] for array in arrays])
        after = np.concatenate([array[1:] for array in arrays])
        dtype = split.observations[name].dtype
        np.testing.assert_array_equal(split.observations[name][starts], seen.astype(dtype))
        np.testing.assert_array_equal(split.observations[name][starts + 1], after.astype(dtype))
    actions = np.concatenate([episode['actions'] for episode in episodes])
    np.testing.assert_array_equal(split.actions[starts], np.float32(actions))
    rewards = np.concatenate([episode['rewards'] for episode in episodes])
    np.testing.assert_array_equal(split.labels['rewards'][starts], np.float32(rewards))
    masks = 1 - np.concatenate([episode['terminations'] for episode in episodes])
    np.testing.assert_array_equal(split.labels['masks'][starts], masks)
    assert (split.labels['masks'][split.terminals] == 1).all()


def test_one_array(tmp_path):
    """From a `Dict`, and from a space without names."""
    episodes = make_episodes()
    store = prepared(tmp_path, episodes, {'': 'joints'})
    notes = ' '.join(store.manifest.sources['train']['notes'])
    assert 'ignored: observations/camera' in notes
    assert 'skipped episodes without a step: 1' in notes
    for episode in episodes:
        del episode['observations/camera']
        episode['observations'] = episode.pop('observations/joints')
    alone = prepared(tmp_path, episodes, {})
    prepared(tmp_path, episodes, {'': 'observations'})
    np.testing.assert_array_equal(
        store.splits['train'].observations, alone.splits['train'].observations
    )
    assert alone.manifest.splits['train'].arrays.keys() == {
        *('observations', 'actions', 'terminals', 'rewards', 'masks'),
    }


FAULTS = {
    'actions': (lambda x: x[:-1], r'episode_3: rewards has 12 rows, of 11 actions'),
    'rewards': (lambda x: x[:-1], r'episode_3: rewards has 11 rows, of 12 actions'),
    'terminations': (lambda x: x + 2, 'terminations holds values other than 0 and 1'),
    'observations/joints': (
        lambda x: np.hstack([x, x]),
        r'episode_3: observations\.joints has rows',
    ),
}


@pytest.mark.parametrize('key', FAULTS)
def test_wrong_files_are_refused(tmp_path, key):
    change, message = FAULTS[key]
    episodes = make_episodes()
    for episode in episodes if key == 'terminations' else episodes[3:]:
        episode[key] = change(episode[key].astype(float))
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, episodes)


def test_groups_that_are_no_episodes(tmp_path):
    """A dataset, a link that leads nowhere, and numbers without rows."""
    source = write_episodes(tmp_path / 'main_data.hdf5', make_episodes())
    for value, message in (
        (np.ones(3), 'episode_9 is not a group'),
        (h5py.SoftLink('/x'), 'episode_9 is a broken link'),
    ):
        with h5py.File(source, 'a') as file:
            file['episode_9'] = value
        with pytest.raises(DataError, match=message):
            file_splits(source, 'd', KEYS)
        with h5py.File(source, 'a') as file:
            del file['episode_9']
    with h5py.File(source, 'w') as file:
        numbers = {'actions': 1.0, 'rewards': np.ones(0), 'terminations': np.ones(0)}
        for name, value in {'observations': np.ones((1, 3)), **numbers}.items():
            file[f'episode_0/{name}'] = value
    with pytest.raises(DataError, match='every episode is empty'):
        file_splits(source, 'd', {})


def test_keys(tmp_path, fql, assert_one_line):
    held = r'choose .*from observations/camera, observations/joints'
    for keys in ({}, {'': 'waist'}, {'x': 'waist', 'y': 'joints'}):
        with pytest.raises(DataError, match=held):
            prepared(tmp_path, make_episodes(), keys)
    several = [{**episode, 'actions/arm': episode['actions']} for episode in make_episodes()]
    for episode in several:
        episode['actions/base'] = episode.pop('actions')
    with pytest.raises(DataError, match=r'actions is several arrays, actions/arm, actions/base; '):
        prepared(tmp_path, several)
    assert_one_line(fql('prepare', 'd', '--minari', 'no/such-v0', '--source', 'd.hdf5'), '--minari')


def test_what_was_never_written_is_not_taken_for_zeros(tmp_path):
    path = write_episodes(tmp_path / 'main_data.hdf5', make_episodes())
    with h5py.File(path, 'a') as file:
        for name in ('rewards', 'actions'):  # Rewards may be 0 throughout.
            shape = file[f'episode_0/{name}'].shape
            del file[f'episode_0/{name}']
            file.create_dataset(f'episode_0/{name}', shape)
    with pytest.raises(DataError, match='a part of /episode_0/actions was never written'):
        file_splits(path, 'd', KEYS)
