"""HDF5 files in D4RL's layout, compared with the results of D4RL's code."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.frame_store import Split
from data_pipeline.store.writer import write_store

Arrays = dict[str, np.ndarray]


def d4rl_transitions(dataset: Arrays, is_antmaze: bool) -> Arrays:
    """`d4rl.qlearning_dataset`, row by row, and the ends of trajectories as FQL's code finds them.

    A stored following observation is used, as in D4RL's later versions.
    """
    columns: dict[str, list] = {
        name: [] for name in ('observations', 'actions', 'rewards', 'next_observations', 'dones')
    }
    for i in range(len(dataset['rewards']) - 1):
        if dataset['timeouts'][i]:
            continue
        following = dataset.get('next_observations', dataset['observations'][1:])[i]
        columns['observations'].append(dataset['observations'][i].astype(np.float32))
        columns['next_observations'].append(following.astype(np.float32))
        columns['actions'].append(dataset['actions'][i].astype(np.float32))
        columns['rewards'].append(np.float32(dataset['rewards'][i]))
        columns['dones'].append(bool(dataset['terminals'][i]))
    found = {name: np.array(column) for name, column in columns.items()}
    jumps = found['observations'][1:] - found['next_observations'][:-1]
    ends = np.linalg.norm(jumps, axis=1) > 1e-6
    if not is_antmaze:
        ends |= found['dones'][:-1]
    found['ends'] = np.append(ends, True)
    found['masks'] = 1 - found.pop('dones').astype(np.float32)
    return found


def rollouts(lengths: tuple[int, ...], rng: np.random.Generator, ending: str) -> Arrays:
    """Random walks of these numbers of steps, recorded as by D4RL: one row per step.

    ending: `timeouts`: each ends at a time limit; `mixed`: every other one by a termination; `on`:
        the walk goes on after a termination, as in antmaze.
    """
    observations, terminals, timeouts = [], [], []
    for number, steps in enumerate(lengths):
        observations.append(rng.normal(size=(steps, 5)).cumsum(axis=0) + 100 * number)
        ends = np.arange(steps) == steps - 1
        is_terminated = ending == 'mixed' and number % 2 == 1
        reached = rng.random(steps) < 0.2 if ending == 'on' else np.zeros(steps, bool)
        terminals.append(ends if is_terminated else reached & ~ends)
        timeouts.append(np.zeros(steps, bool) if is_terminated else ends)
    rows = sum(lengths)
    done = np.concatenate(terminals)
    return {
        'observations': np.concatenate(observations),
        'actions': rng.uniform(-1, 1, (rows, 2)),
        'rewards': rng.normal(size=rows) if ending != 'on' else done.astype(np.float64),
        'terminals': done,
        'timeouts': np.concatenate(timeouts),
    }


def write_hdf5(path: Path, arrays: Arrays, **options: object) -> Path:
    with h5py.File(path, 'w') as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **(options if array.ndim else {}))
    return path


def prepared(tmp_path: Path, name: str, arrays: Arrays, **options: object) -> Split:
    source = write_hdf5(tmp_path / 'source.hdf5', arrays, **options)
    splits = file_splits(source, name)
    return write_store(tmp_path / name, name, splits, overwrite=True).splits['train']


def stored_transitions(split: Split) -> Arrays:
    starts = split.valid_rows
    return {
        'observations': split.observations[starts],
        'next_observations': split.observations[starts + 1],
        'actions': split.actions[starts],
        'rewards': split.labels['rewards'][starts],
        'masks': split.labels['masks'][starts],
        'ends': split.terminals[starts + 1],
    }


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
    ('name', 'ending'),
    [('pen-human-v1', 'mixed'), ('door-cloned-v1', 'timeouts'), ('antmaze-umaze-v2', 'on')],
)
def test_transitions_are_those_of_d4rl(tmp_path, name, ending, seed):
    rng = np.random.default_rng(seed)
    lengths = tuple(rng.integers(1, 30, 20))
    arrays = rollouts(lengths, rng, ending)
    if seed == 1:
        arrays |= {n: arrays[n][:, None] for n in ('rewards', 'terminals')}
    if seed == 2:
        arrays = {n: np.float32(a) for n, a in arrays.items()}
    split = prepared(tmp_path, name, arrays, chunks=True, compression='gzip')
    flat = {n: a[:, 0] if a.shape[1:] == (1,) else a for n, a in arrays.items()}
    expected = d4rl_transitions(flat, is_antmaze=ending == 'on')
    found = stored_transitions(split)
    assert len(expected['rewards']) > 200
    assert ending == 'timeouts' or not expected['masks'].all()
    for array, values in expected.items():
        np.testing.assert_array_equal(found[array], values, err_msg=array)


def test_stored_following_observations(tmp_path):
    rng = np.random.default_rng(3)
    arrays = rollouts((7, 12, 3, 9), rng, 'mixed')
    arrays['next_observations'] = np.roll(arrays['observations'], -1, axis=0)
    jumps = np.array([4, 6, 18, 20])
    arrays['next_observations'][jumps] += 1
    split = prepared(tmp_path, 'walker-v2', arrays)
    expected = d4rl_transitions(arrays, is_antmaze=False)
    found = stored_transitions(split)
    for array in expected:
        np.testing.assert_array_equal(found[array], expected[array], err_msg=array)


def test_what_else_a_file_holds(tmp_path, fql):
    arrays = rollouts((9, 8), np.random.default_rng(0), 'timeouts')
    arrays |= {
        'infos/qpos': np.arange(17.0)[:, None],
        'infos/qvel': np.zeros((17, 2), np.float32),
        'infos/goal': np.zeros((17, 2)),
        'metadata/algorithm': np.array(b'BC'),
        'metadata/policy/weights': np.zeros(3),
    }
    source = write_hdf5(tmp_path / 'pen-human-v1.hdf5', arrays)
    done = fql('prepare', '--source', source, '--data-dir', tmp_path / 'data')
    assert done.returncode == 0, done.stderr
    assert 'pen-human-v1: ' in done.stdout
    assert '15 transitions in 2 trajectories' in done.stdout
    assert 'ignored: infos/goal, metadata' in done.stdout
    assert 'by the rule of D4RL, 15 of 17 rows are transitions' in done.stdout
    qpos = np.load(tmp_path / 'data' / 'pen-human-v1' / 'train' / 'qpos.npy')
    np.testing.assert_array_equal(qpos, arrays['infos/qpos'])
    run = ('--run-dir', tmp_path / 'run', '--data-dir', tmp_path / 'data', '--steps', 2)
    small = ('--batch-size', 8, '--hidden-dims', 8, '--flow-steps', 2, '--frame-stack', 1)
    done = fql('train', '--task', 'own', '--dataset', 'pen-human-v1', *run, *small)
    assert done.returncode == 0, done.stderr


def without(name: str):
    return lambda arrays: arrays.pop(name)


def nan_rewards(arrays):
    arrays['rewards'][3] = np.nan


def twos(arrays):
    arrays['timeouts'] = arrays['timeouts'] * 2


def short(arrays):
    arrays['actions'] = arrays['actions'][:-2]


def large(arrays):
    arrays['actions'][5, 1] = 1.2


FAULTS = {
    'observations': (without('observations'), 'has neither observations'),
    'rewards': (without('rewards'), 'has no rewards'),
    'terminals': (without('terminals'), 'has no terminals'),
    'timeouts': (without('timeouts'), 'has no timeouts'),
    'NaN': (nan_rewards, 'rewards holds values that are not finite, first in row 3'),
    'twos': (twos, 'timeouts holds values other than 0 and 1'),
    'short': (short, 'arrays differ in length'),
    'large': (large, r'actions reach 1\.2 in row 5'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_wrong_files_are_refused(tmp_path, name):
    spoil, message = FAULTS[name]
    arrays = rollouts((9, 8), np.random.default_rng(0), 'mixed')
    spoil(arrays)
    with pytest.raises(DataError, match=message) as caught:
        prepared(tmp_path, 'pen-human-v1', arrays)
    assert str(caught.value).startswith(str(tmp_path / 'source.hdf5'))
    assert not (tmp_path / 'pen-human-v1').exists()


@pytest.mark.parametrize('place', [0.3, 0.6, 0.9])
def test_damaged_files_are_refused(tmp_path, place):
    arrays = rollouts((900, 800), np.random.default_rng(0), 'mixed')
    path = write_hdf5(tmp_path / 'd.hdf5', arrays, chunks=True, compression='gzip', fletcher32=True)
    data = path.read_bytes()
    path.write_bytes(data[: int(place * len(data))])
    with pytest.raises(DataError, match='cannot be read as HDF5') as caught:
        file_splits(path, 'd')
    assert '\n' not in str(caught.value)
    start = int(place * len(data))
    path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
    with pytest.raises(DataError, match='cannot be read as HDF5'):
        write_store(tmp_path / 'd', 'd', file_splits(path, 'd'))


def test_without_timeouts_the_layout_is_that_of_npz_files(tmp_path, make_arrays):
    arrays = make_arrays((3, 4))
    labels = {'rewards': np.arange(7.0), 'masks': np.ones(7)}
    split = prepared(tmp_path, 'd', {**arrays, **labels})
    np.testing.assert_array_equal(split.info['qpos'], arrays['qpos'])
    for name in ('observations', 'actions', 'terminals'):
        np.testing.assert_array_equal(getattr(split, name), arrays[name])
    np.testing.assert_array_equal(split.labels['rewards'], labels['rewards'])


def test_a_validation_file_beside_it(tmp_path, make_arrays):
    write_hdf5(tmp_path / 'd.hdf5', make_arrays((3, 4)))
    write_hdf5(tmp_path / 'd-val.hdf5', make_arrays((5,)))
    splits = file_splits(tmp_path / 'd.hdf5', 'd')
    assert {name: split.rows for name, split in splits.items()} == {'train': 7, 'val': 5}


def write_table(path: Path, arrays: Arrays, **links: object) -> Path:
    """A file of arrays and of links in the place of some."""
    with h5py.File(path, 'w') as file:
        for name, array in {**arrays, **links}.items():
            file[name] = array
        file.create_group('infos')['back'] = file['/']  # Links can go in circles.
    return path


def test_links_within_a_file_are_followed(tmp_path, make_arrays):
    arrays = make_arrays()
    held = {'kept/here': arrays.pop('actions')}
    path = write_table(tmp_path / 'd.hdf5', arrays | held, actions=h5py.SoftLink('/kept/here'))
    split = write_store(tmp_path / 's', 'd', file_splits(path, 'd')).splits['train']
    np.testing.assert_array_equal(split.actions, held['kept/here'])


@pytest.mark.parametrize('is_there', [True, False])
@pytest.mark.parametrize('kind', ['link', 'virtual'])
def test_what_lies_in_another_file_is_refused(tmp_path, make_arrays, kind, is_there):
    """HDF5 gives zeros for a virtual dataset whose file is missing."""
    arrays = make_arrays()
    if is_there:
        with h5py.File(tmp_path / 'other.hdf5', 'w') as file:
            file['a'] = arrays['actions']
    shape = arrays.pop('actions').shape
    other = str(tmp_path / 'other.hdf5')
    path = write_table(tmp_path / 'd.hdf5', arrays)
    with h5py.File(path, 'a') as file:
        if kind == 'link':
            file['actions'] = h5py.ExternalLink(other, '/a')
        else:
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource(other, 'a', shape)
            file.create_virtual_dataset('actions', layout)
    message = 'is a virtual dataset'
    if kind == 'link':
        message = 'lies in another file' if is_there else 'is a broken link'
    with pytest.raises(DataError, match=rf'd\.hdf5: /actions {message}'):
        file_splits(path, 'd')


@pytest.mark.parametrize('chunks', [None, (7, 1)])
def test_actions_that_were_never_written_are_not_taken_for_zeros(tmp_path, make_arrays, chunks):
    path, arrays = tmp_path / 'd.hdf5', make_arrays()
    for is_written in (True, False):
        with h5py.File(write_table(path, arrays), 'a') as file:
            del file['actions']
            actions = file.create_dataset('actions', (14, 4), 'f4', chunks=chunks)
            if is_written:
                actions[:] = arrays['actions']
            elif chunks:
                actions[:7] = arrays['actions'][:7]
        if is_written:
            file_splits(path, 'd')
        else:
            with pytest.raises(DataError, match='a part of /actions was never written'):
                file_splits(path, 'd')


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, make_arrays):
    path = write_table(tmp_path / 'd.hdf5', make_arrays())
    split = file_splits(path, 'd')['train']
    write_table(tmp_path / 'other.hdf5', make_arrays(seed=1)).replace(path)
    with pytest.raises(DataError, match=r'd\.hdf5: was changed while it was read'):
        list(split.read(lambda line: None))
