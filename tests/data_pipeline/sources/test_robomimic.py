"""HDF5 files in robomimic's layout, compared with transitions listed one by one."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.observations import observation_keys
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.writer import write_store

Demos = dict[str, dict[str, np.ndarray]]
NAMES = ('demo_0', 'demo_1', 'demo_2', 'demo_10')


def make_demos(lengths: tuple[int, ...] = (4, 1, 3, 6), following: bool = False) -> Demos:
    """Sparse rewards: the last step of each demonstration reaches the goal and is done."""
    rng = np.random.default_rng(0)
    demos = {}
    for name, steps in zip(NAMES, lengths, strict=True):
        seen = {
            'agentview_image': rng.integers(1, 256, (steps + 1, 12, 10, 3), np.uint8),
            'robot0_eef_pos': rng.normal(size=(steps + 1, 3)),
        }
        is_last = np.arange(steps) == steps - 1
        demos[name] = {
            **{f'obs/{key}': array[:-1] for key, array in seen.items()},
            **({f'next_obs/{key}': array[1:] for key, array in seen.items()} if following else {}),
            'actions': rng.uniform(-1, 1, (steps, 2)),
            'rewards': is_last.astype(np.float64),
            'dones': is_last.astype(np.int64),
            'states': rng.normal(size=(steps, 7)),
        }
    return demos


def write_demos(path: Path, demos: Demos, **filters: list[str]) -> Path:
    with h5py.File(path, 'w') as file:
        data = file.create_group('data')
        for name in reversed(demos):
            for key, array in demos[name].items():
                data.create_dataset(f'{name}/{key}', data=array)
        for name, members in filters.items():
            file.create_dataset(f'mask/{name}', data=np.array(members, dtype='S8'))
    return path


def prepared(tmp_path: Path, demos: Demos, key: str = '', **filters: list[str]) -> Any:
    source = write_demos(tmp_path / 'demos.hdf5', demos, **filters)
    return write_store(
        tmp_path / 'store', 'd', file_splits(source, 'd', {'': key} if key else {}), overwrite=True
    )


@pytest.mark.parametrize('following', [True, False])
@pytest.mark.parametrize('key', ['agentview_image', 'robot0_eef_pos'])
def test_every_row_is_a_transition(tmp_path, key, following):
    demos = make_demos(following=following)
    store = prepared(tmp_path, demos, key)
    split = store.splits['train']
    starts = split.valid_rows
    expected: dict[str, list] = {'seen': [], 'after': [], 'actions': [], 'rewards': [], 'dones': []}
    for demo in demos.values():
        steps = len(demo['actions'])
        seen = demo[f'obs/{key}']
        for t in range(steps):
            # An observation after the last step that is not stored is not used: the step is done.
            after = demo[f'next_obs/{key}'][t] if following else seen[min(t + 1, steps - 1)]
            expected['seen'].append(seen[t])
            expected['after'].append(after)
            for name in ('actions', 'rewards', 'dones'):
                expected[name].append(demo[name][t])
    dtype = split.observations.dtype
    np.testing.assert_array_equal(split.observations[starts], np.array(expected['seen'], dtype))
    np.testing.assert_array_equal(
        split.observations[starts + 1], np.array(expected['after'], dtype)
    )
    np.testing.assert_array_equal(split.actions[starts], np.float32(expected['actions']))
    np.testing.assert_array_equal(split.labels['rewards'][starts], expected['rewards'])
    np.testing.assert_array_equal(split.labels['masks'][starts], 1 - np.array(expected['dones']))
    assert split.lengths.tolist() == [5, 2, 4, 7]
    notes = ' '.join(store.manifest.sources['train']['notes'])
    other = ({'agentview_image', 'robot0_eef_pos'} - {key}).pop()
    assert f'obs/{other}, states' in notes
    assert ('the last row of 4 demonstrations is done' in notes) == (not following)


def test_rows_that_lead_nowhere(tmp_path):
    """The first and the second were truncated, and their next observations are not stored."""
    demos = make_demos()
    demos['demo_0']['dones'][:] = demos['demo_1']['dones'][:] = 0
    store = prepared(tmp_path, demos, 'robot0_eef_pos')
    assert store.splits['train'].lengths.tolist() == [4, 4, 7]
    split = store.splits['train']
    assert split.labels['rewards'][split.valid_rows].sum() == 2
    notes = ' '.join(store.manifest.sources['train']['notes'])
    assert 'the rewards of 1 last rows of demonstrations are not used' in notes
    assert 'skipped demonstrations without a transition: 1' in notes
    for demo in demos.values():
        demo['dones'][:] = 0
    with pytest.raises(DataError, match=r'the only rewards are in the last rows .* next_obs'):
        prepared(tmp_path, demos, 'robot0_eef_pos')


def test_filter_keys_are_the_splits(tmp_path):
    filters = {'train': ['demo_10', 'demo_2'], 'valid': ['demo_0']}
    store = prepared(tmp_path, make_demos(), 'robot0_eef_pos', **filters)
    lengths = {name: split.lengths.tolist() for name, split in store.splits.items()}
    assert lengths == {'train': [4, 7], 'val': [5]}
    with pytest.raises(DataError, match='mask names demo_9, which is not in data'):
        prepared(tmp_path, make_demos(), 'robot0_eef_pos', train=['demo_9'], valid=['demo_0'])


def test_without_rewards(tmp_path):
    demos = make_demos(following=True)
    for demo in demos.values():
        del demo['rewards']
    store = prepared(tmp_path, demos, 'robot0_eef_pos')
    assert store.splits['train'].labels == {}
    assert 'the data have no rewards and masks' in store.manifest.sources['train']['notes'][0]


def test_another_observation_is_another_source(tmp_path):
    source = write_demos(tmp_path / 'demos.hdf5', make_demos())
    write_store(tmp_path / 's', 'd', file_splits(source, 'd', {'': 'agentview_image'}))
    write_store(tmp_path / 's', 'd', file_splits(source, 'd', {'': 'agentview_image'}))
    with pytest.raises(DataError, match='replace it with --overwrite'):
        write_store(tmp_path / 's', 'd', file_splits(source, 'd', {'': 'robot0_eef_pos'}))


def spoiled(key: str, change: Any, demo: str = 'demo_2') -> Any:
    def spoil(demos: Demos) -> None:
        demos[demo][key] = change(demos[demo][key])

    return spoil


def drop(key: str) -> Any:
    return lambda demos: demos['demo_2'].pop(key)


STATE = 'obs/robot0_eef_pos'
FAULTS = {
    'no actions': (drop('actions'), r'data/demo_2 has no actions'),
    'no observation': (drop(STATE), r'data/demo_2 has no obs/robot0_eef_pos'),
    'rewards of some': (drop('rewards'), r'demo_2: rewards and dones are in some'),
    'short actions': (spoiled('actions', lambda x: x[:-1]), r'data/demo_2: arrays differ in len'),
    'NaN': (spoiled(STATE, lambda x: x * np.nan), 'observations holds values that are not finite'),
    'large': (spoiled('actions', lambda x: x + 3), r'actions reach 3\.\d+ in row \d'),
    'wide': (spoiled(STATE, lambda x: np.hstack([x, x])), r'demo_2: .*eef_pos has rows of \(\(6,'),
    'dones': (spoiled('dones', lambda x: x * 2), 'dones holds values other than 0 and 1'),
    'text': (spoiled('rewards', lambda x: x.astype('S3')), 'rewards is .* must be a number'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_wrong_files_are_refused(tmp_path, name):
    spoil, message = FAULTS[name]
    demos = make_demos()
    spoil(demos)
    with pytest.raises(DataError, match=message) as caught:
        prepared(tmp_path, demos, 'robot0_eef_pos')
    assert str(tmp_path / 'demos.hdf5') in str(caught.value)
    assert not (tmp_path / 'store').exists()


def test_a_demonstration_without_observations_is_named(tmp_path):
    demos = {**make_demos(), 'demo_0': {'actions': np.zeros((4, 2))}}
    source = write_demos(tmp_path / 'demos.hdf5', demos)
    with pytest.raises(DataError, match='data/demo_0: holds no observations'):
        file_splits(source, 'd')


@pytest.mark.parametrize('following', [True, False])
def test_several_observations(tmp_path, following):
    """Each is stored as it would be alone."""
    source = write_demos(tmp_path / 'demos.hdf5', make_demos(following=following))
    keys = {'eye': 'agentview_image', 'robot0_eef_pos': 'obs/robot0_eef_pos'}
    store = write_store(tmp_path / 'several', 'd', file_splits(source, 'd', keys))
    split = store.splits['train']
    for name, key in keys.items():
        splits = file_splits(source, 'd', {'': key})
        one = write_store(tmp_path / name, 'd', splits).splits['train']
        np.testing.assert_array_equal(split.observations[name], one.observations)
        np.testing.assert_array_equal(split.terminals, one.terminals)
        np.testing.assert_array_equal(split.actions, one.actions)
        np.testing.assert_array_equal(split.labels['masks'], one.labels['masks'])
    notes = ' '.join(store.manifest.sources['train']['notes'])
    assert 'ignored: states' in notes


def test_several_observations_of_which_one_is_not_there(tmp_path):
    demos = make_demos(following=True)
    del demos['demo_2']['next_obs/robot0_eef_pos']
    source = write_demos(tmp_path / 'demos.hdf5', demos)
    keys = observation_keys(['agentview_image', 'robot0_eef_pos'])
    with pytest.raises(DataError, match='data/demo_2 has no next_obs/robot0_eef_pos'):
        file_splits(source, 'd', keys)
    with pytest.raises(DataError, match=r"no observation 'waist'; choose .*eef_pos"):
        file_splits(source, 'd', observation_keys(['agentview_image', 'waist']))


def test_the_observation_must_be_named(tmp_path, fql, assert_one_line):
    source = write_demos(tmp_path / 'demos.hdf5', make_demos())
    data = ('--data-dir', tmp_path / 'data')
    held = 'agentview_image, robot0_eef_pos'
    assert_one_line(fql('prepare', '--source', source, *data), '--observation-key', held)
    key = ('--observation-key', 'wrist')
    assert_one_line(fql('prepare', '--source', source, *key, *data), "no observation 'wrist'", held)
    done = fql('prepare', '--source', source, '--observation-key', 'agentview_image', *data)
    assert done.returncode == 0, done.stderr
    assert 'demos: ' in done.stdout
    assert 'observations 12x10x3 uint8' in done.stdout


def test_no_demonstrations(tmp_path):
    with h5py.File(tmp_path / 'd.hdf5', 'w') as file:
        file.create_group('data')
    with pytest.raises(DataError, match='holds no demonstration'):
        file_splits(tmp_path / 'd.hdf5', 'd')


def test_a_demonstration_that_is_a_link_to_nothing_is_not_passed_over(tmp_path):
    source = write_demos(tmp_path / 'd.hdf5', make_demos())
    with h5py.File(source, 'a') as file:
        file['data']['demo_11'] = h5py.SoftLink('/nowhere')
    with pytest.raises(DataError, match='/data/demo_11 is a broken link'):
        file_splits(source, 'd', 'robot0_eef_pos')


@pytest.mark.parametrize('mask', [[0, 2], [[b'demo_0']], b'demo_0'])
def test_filter_keys_that_list_no_names(tmp_path, mask):
    source = write_demos(tmp_path / 'd.hdf5', make_demos(), valid=['demo_0'])
    with h5py.File(source, 'a') as file:
        file['mask/train'] = mask
    with pytest.raises(DataError, match='/mask/train must list names of demonstrations'):
        file_splits(source, 'd', 'robot0_eef_pos')


@pytest.mark.parametrize('broken', [lambda x: np.roll(x, 1, axis=0), lambda x: x * np.nan])
def test_next_observations_that_are_not_those_of_the_next_row(tmp_path, broken):
    """They would be other transitions than the file's."""
    demos = make_demos(following=True)
    key = 'next_obs/robot0_eef_pos'
    following = demos['demo_2'][key]
    demos['demo_2'][key] = np.concatenate([broken(following[:-1]), following[-1:]])
    with pytest.raises(DataError, match=r'row 0 of /data/demo_2/next_obs/\S+ is not row 1 of'):
        prepared(tmp_path, demos, 'robot0_eef_pos')


def test_filter_keys_that_are_not_used_are_named(tmp_path):
    store = prepared(tmp_path, make_demos(), 'robot0_eef_pos', half=['demo_0'])
    assert 'mask/half' in ' '.join(store.manifest.sources['train']['notes'])


def test_observations_that_were_never_written_are_not_taken_for_zeros(tmp_path):
    path = write_demos(tmp_path / 'd.hdf5', make_demos())
    with h5py.File(path, 'a') as file:
        del file['data/demo_2/obs/robot0_eef_pos']
        file.create_dataset('data/demo_2/obs/robot0_eef_pos', (3, 3))
    with pytest.raises(DataError, match='demo_2/obs/robot0_eef_pos was never written'):
        file_splits(path, 'd', observation_keys(['robot0_eef_pos']))


def test_demonstrations_without_observations(tmp_path):
    """As robosuite writes them, before observations are extracted."""
    demos = {
        name: {key: x for key, x in demo.items() if 'obs/' not in key}
        for name, demo in make_demos().items()
    }
    with pytest.raises(DataError, match=r'd\.hdf5: data/demo_\d+: holds no observations$'):
        file_splits(write_demos(tmp_path / 'd.hdf5', demos), 'd')
