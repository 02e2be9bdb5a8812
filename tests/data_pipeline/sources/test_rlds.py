"""Stores from RLDS datasets: those exported from a store, and those of other writers."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from data_pipeline.errors import DataError
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.replay_store import open_replay
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.sources.rlds import RldsKeys, rlds_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.writer import write_store
from data_pipeline.tfds_builder import episodes_per_shard, export_tfds
from fql.envs.tasks import find_task, task_names

NAME = 'visual-cube-single-play-v0'
LENGTHS, VAL_LENGTHS = (2, 30, 7, 2), (3, 5)


def with_zeros(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values whose bytes end in zeros, which byte strings may lose."""
    arrays['observations'][3, 4:] = 0
    arrays['qpos'] = arrays['qpos'] / np.float64(3)
    arrays['qpos'][:, -2:] = 0
    arrays['qvel'][:] = 0
    arrays['actions'][1:4] = [1, -1, 0, 0]
    arrays['button_states'] = np.arange(2 * len(arrays['actions'])).reshape(-1, 2) % 2
    return arrays


@pytest.fixture
def arrays(make_arrays) -> dict[str, dict[str, np.ndarray]]:
    return {
        'train': with_zeros(make_arrays(LENGTHS)),
        'val': with_zeros(make_arrays(VAL_LENGTHS, seed=1)),
    }


@pytest.fixture
def store(tmp_path, arrays) -> FrameStore:
    np.savez(tmp_path / 'd.npz', **arrays['train'])
    np.savez(tmp_path / 'd-val.npz', **arrays['val'])
    return write_store(tmp_path / 'store', NAME, npz_splits(tmp_path / 'd.npz'))


def test_round_trip_is_exact(store, arrays, tmp_path):
    calls: list[tuple[int, int]] = []
    folder = export_tfds(store, tmp_path / 'tfds', lambda *call: calls.append(call))
    assert folder == tmp_path / 'tfds' / 'ogbench' / NAME / '1.0.0'
    assert calls[-1] == (49, 49)
    again = write_store(tmp_path / 'again', NAME, rlds_splits(str(folder), RldsKeys()))
    for split, expected in arrays.items():
        found = again.splits[split].arrays
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == array.tobytes()
    assert again.manifest.splits == store.manifest.splits


def test_one_long_episode_does_not_give_every_episode_a_file_of_its_own():
    lengths = np.array([100_000, *[1_000] * 400])
    assert episodes_per_shard(lengths, row_bytes=64 * 64 * 3) == 70  # 15.3 MB each on average.
    assert episodes_per_shard(np.array([10**6]), row_bytes=64 * 64 * 3) == 1


def test_round_trip_of_vectors(make_arrays, tmp_path):
    np.savez(tmp_path / 'd.npz', **make_arrays(shape=(9,), dtype=np.float32))
    store = write_store(tmp_path / 'store', 'cube-single-play-v0', npz_splits(tmp_path / 'd.npz'))
    folder = export_tfds(store, tmp_path / 'tfds')
    again = write_store(tmp_path / 'again', 'd', rlds_splits(str(folder), RldsKeys()))
    assert again.manifest.splits == store.manifest.splits


def test_rows_that_are_no_transitions_do_not_become_some(make_arrays, tmp_path):
    """Ends by a time limit in a terminal row, whose reward is not used."""
    arrays = make_arrays((4, 5))
    ends = arrays['terminals']
    np.savez(tmp_path / 'd.npz', **arrays, timeouts=ends, rewards=np.where(ends, 5, -1))
    store = write_store(tmp_path / 'store', 'd', npz_splits(tmp_path / 'd.npz'))
    assert store.splits['train'].num_transitions == 7
    folder = export_tfds(store, tmp_path / 'tfds')
    again = write_store(
        tmp_path / 'again', 'd', rlds_splits(str(folder), RldsKeys(reward='reward'))
    )
    np.testing.assert_array_equal(again.splits['train'].lengths, store.splits['train'].lengths)
    valid = store.splits['train'].valid_rows
    for name, labels in store.splits['train'].labels.items():
        np.testing.assert_array_equal(again.splits['train'].labels[name][valid], labels[valid])


def test_the_environments_of_a_replay_become_one_split(tmp_path):
    """The first environment has no transition yet, and so no split."""
    layout = RowLayout((3,), 'float32', 2)
    rng = np.random.default_rng(0)
    expected = []
    with Replay(tmp_path / 'replay', 'env', layout, 3) as replay:
        for stream in replay.streams:
            first = rng.normal(size=3).astype(np.float32)
            stream.start(first)
            if stream is replay.streams[0]:
                continue
            expected.append(first)
            for step in range(4):
                frame = rng.normal(size=3).astype(np.float32)
                stream.step(rng.uniform(-1, 1, 2), -1.0, 1.0, frame, step == 3)
                expected.append(frame)
    folder = export_tfds(open_replay(tmp_path / 'replay'), tmp_path / 'tfds')
    store = write_store(tmp_path / 'again', 'd', rlds_splits(str(folder), RldsKeys()))
    assert store.splits.keys() == {'train'}
    np.testing.assert_array_equal(store.splits['train'].observations, expected)
    assert store.splits['train'].lengths.tolist() == [5, 5]


def test_every_visual_dataset_has_a_name_that_tfds_takes(make_arrays, tmp_path):
    np.savez(tmp_path / 'd.npz', **make_arrays((2,)))
    store = write_store(tmp_path / 'store', 'd', npz_splits(tmp_path / 'd.npz'))
    datasets = {find_task(name).dataset for name in task_names()}
    names = [name for name in datasets if name.startswith('visual-')]
    assert len(names) > 30
    for name in names:
        named = dataclasses.replace(
            store, manifest=dataclasses.replace(store.manifest, dataset=name)
        )
        export_tfds(named, tmp_path / 'tfds')
        source = tfds.data_source(f'ogbench/{name}', split='train', data_dir=tmp_path / 'tfds')
        assert len(source[0]['steps']) == 2


def test_export_does_not_overwrite(store, tmp_path):
    folder = export_tfds(store, tmp_path / 'tfds')
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.parent.rglob('*'))

    def never(done: int, total: int) -> None:
        raise AssertionError('it has written')

    with pytest.raises(DataError, match='exists; delete it'):
        export_tfds(store, tmp_path / 'tfds', never)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.parent.rglob('*')) == before


def test_failed_export_leaves_nothing(store, tmp_path):
    def fail(done: int, total: int) -> None:
        raise OSError(28, 'No space left on device')

    with pytest.raises(DataError, match='cannot be written: No space left'):
        export_tfds(store, tmp_path / 'tfds', fail)
    files = [path for path in (tmp_path / 'tfds').rglob('*') if path.is_file()]
    assert all(path.name.endswith('.lock') for path in files)


def test_a_disk_that_is_full_within_an_export_is_reported(make_arrays, small_disk, tmp_path):
    """ArrayRecord raises its own errors for it."""
    np.savez(tmp_path / 'd.npz', **make_arrays((1_000,) * 2, (128, 128, 1)))
    large = write_store(tmp_path / 'large', 'large-v0', npz_splits(tmp_path / 'd.npz'))
    with pytest.raises(DataError, match=r'cannot be written: .*No space left') as caught:
        export_tfds(large, small_disk / 'tfds')
    assert '\n' not in str(caught.value)


READ_ELSEWHERE = """
import sys
import numpy as np, tensorflow_datasets as tfds
source = tfds.data_source(sys.argv[1], split='train', data_dir=sys.argv[2])
for length, episode in zip((2, 30, 7, 2), source, strict=True):
    steps = list(episode['steps'])
    assert len(steps) == length
    names = 'observation action reward discount is_first is_last is_terminal qpos qvel'
    assert set(steps[0]) == {*names.split(), 'button_states'}
    assert [s['is_first'] for s in steps] == [True] + [False] * (length - 1)
    assert [s['is_last'] for s in steps] == [False] * (length - 1) + [True]
    assert not any(s['is_terminal'] for s in steps)
    assert all(s['reward'] == 0 and s['discount'] == 1 for s in steps)
    assert steps[0]['observation'].shape == (8, 8, 3)
assert 'data_pipeline' not in sys.modules and 'tensorflow' not in sys.modules
print('read')
"""


def test_others_read_it_without_this_code(store, tmp_path):
    export_tfds(store, tmp_path / 'tfds')
    done = subprocess.run(
        [sys.executable, '-c', READ_ELSEWHERE, f'ogbench/{NAME}', tmp_path / 'tfds'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == 'read\n', done.stderr


def bytes_of(shape: tuple[int, ...], dtype: Any) -> Any:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)


STEP = {
    'observation': {
        'image': tfds.features.Image(shape=(6, 5, 3), encoding_format='png'),
        'wrist': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
        'state': bytes_of((4,), np.float64),
    },
    'action': bytes_of((2,), np.float64),
    'is_last': np.bool_,
    'is_terminal': np.bool_,
}


def robot_episodes(lengths: tuple[int, ...] = (3, 5)) -> list[list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    return [
        [
            {
                'observation': {
                    'image': rng.integers(0, 256, (6, 5, 3), np.uint8),
                    'wrist': rng.integers(0, 256, (3, 7, 3), np.uint8),
                    'state': rng.normal(size=4),
                },
                'action': rng.uniform(-1, 1, 2),
                'is_last': i == length - 1,
                'is_terminal': i == length - 1,
            }
            for i in range(length)
        ]
        for length in lengths
    ]


@pytest.fixture
def write_rlds(tmp_path) -> Callable[..., Path]:
    """write_rlds(episodes, ...): the folder of a dataset that TFDS's own writer wrote."""

    def write(
        episodes: list[list[dict[str, Any]]],
        step: dict[str, Any] = STEP,
        file_format: str = 'array_record',
        split: str = 'train',
        shard_episodes: int = 1,
        others: Sequence[str] = (),
    ) -> Path:
        folder = tmp_path / 'robot' / file_format
        folder.mkdir(parents=True)
        info = tfds.core.DatasetInfo(
            builder=DatasetIdentity('robot', tfds.core.Version('0.1.0'), str(folder), 'elsewhere'),
            features=tfds.features.FeaturesDict({'steps': tfds.features.Dataset(step)}),
        )
        writer = tfds.core.SequentialWriter(info, shard_episodes, file_format=file_format)
        writer.initialize_splits([split, *others])
        writer.add_examples(
            {name: [{'steps': steps} for steps in episodes] for name in (split, *others)}
        )
        writer.close_all()
        return folder

    return write


IMAGE, WRIST, STATE = (RldsKeys(f'observation/{name}') for name in ('image', 'wrist', 'state'))


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_other_datasets(write_rlds, tmp_path, file_format):
    episodes = robot_episodes((3, 5, 2, 4))
    for episode, last in zip(episodes, ([np.nan, 0], [7, 0], [0.5, 1], [-1, 1]), strict=True):
        episode[-1]['action'] = np.array(last, np.float64)
    folder = write_rlds(episodes, file_format=file_format)
    steps = [step for episode in episodes for step in episode]
    actions = np.array([step['action'] for step in steps])
    actions[[2, 7]] = 0  # An action that is not used and could not be stored.
    for keys in (IMAGE, WRIST, STATE):
        name = keys.observation.removeprefix('observation/')
        store = write_store(tmp_path / name, 'robot', rlds_splits(str(folder), keys))
        split = store.splits['train']
        expected = np.stack([step['observation'][name] for step in steps])
        np.testing.assert_array_equal(
            split.observations, expected.astype(np.float32) if name == 'state' else expected
        )
        assert split.actions.dtype == np.float32
        np.testing.assert_array_equal(split.actions, actions.astype(np.float32))
        assert np.flatnonzero(split.terminals).tolist() == [2, 7, 9, 13]
        assert split.info == {}
        assert store.manifest.sources['train']['keys']['observation'] == keys.observation


def test_rewards_of_the_dataset(write_rlds, tmp_path):
    step = {**STEP, 'gain': np.float32, 'discount': np.float32}
    episodes = robot_episodes((3, 4))
    for i, one in enumerate(step for episode in episodes for step in episode):
        one.update(gain=i + 0.5, discount=1, is_terminal=i == 2)  # The second one was cut off.
    episodes[0][-1]['gain'] = np.nan  # The values after the last observation may be anything.
    episodes[1][0]['discount'] = 0
    folder = str(write_rlds(episodes, step))
    splits = rlds_splits(folder, dataclasses.replace(STATE, reward='gain'))
    labels = write_store(tmp_path / 's', 'robot', splits).splits['train'].labels
    np.testing.assert_array_equal(labels['rewards'], [0.5, 1.5, 0, 3.5, 4.5, 5.5, 0])
    np.testing.assert_array_equal(labels['masks'], [1, 0, 1, 0, 1, 1, 1])
    assert {array.dtype for array in labels.values()} == {np.dtype(np.float32)}
    assert (
        write_store(tmp_path / 't', 'robot', rlds_splits(folder, STATE)).splits['train'].labels
        == {}
    )
    with pytest.raises(DataError, match="no rewards at 'loss'; steps have action, discount, gain"):
        rlds_splits(folder, dataclasses.replace(STATE, reward='loss'))


def test_round_trip_of_rewards(make_arrays, tmp_path):
    arrays = make_arrays()
    labels = {'rewards': np.arange(14.0), 'masks': np.arange(14) % 3 != 0}
    ends = arrays['terminals']
    labels['rewards'][ends], labels['masks'][ends] = 0, 1  # They lead nowhere.
    np.savez(tmp_path / 'd.npz', **arrays, **labels)
    store = write_store(tmp_path / 'store', 'd', npz_splits(tmp_path / 'd.npz'))
    folder = export_tfds(store, tmp_path / 'tfds')
    splits = rlds_splits(str(folder), RldsKeys(reward='reward'))
    again = write_store(tmp_path / 'again', 'd', splits)
    assert again.manifest.splits == store.manifest.splits


def template_episodes(lengths: tuple[int, ...]) -> list[list[dict[str, Any]]]:
    """As the template of many converters writes them: the last step is rewarded and terminal."""
    episodes = robot_episodes(lengths)
    for episode in episodes:
        for i, step in enumerate(episode):
            step.update(reward=i == len(episode) - 1, discount=1)
    return episodes


REWARDED = {**STEP, 'reward': np.float32, 'discount': np.float32}
STATE_AND_REWARD = dataclasses.replace(STATE, reward='reward')


def test_rewards_in_terminal_last_steps(write_rlds, tmp_path):
    episodes = template_episodes((3, 1, 4))
    folder = str(write_rlds(episodes, REWARDED))
    store = write_store(tmp_path / 's', 'robot', rlds_splits(folder, STATE_AND_REWARD))
    split = store.splits['train']
    states = [[step['observation']['state'] for step in episode] for episode in episodes]
    # Each last observation is stored twice: where its action is taken, and as the next one.
    expected = np.concatenate([[*episode, episode[-1]] for episode in states])
    np.testing.assert_array_equal(split.observations, expected.astype(np.float32))
    assert split.labels['rewards'].tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0]
    assert split.labels['masks'].tolist() == [1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1]
    assert np.flatnonzero(split.terminals).tolist() == [3, 5, 10]
    notes = ' '.join(store.manifest.sources['train']['notes'])
    assert 'the last step of 3 episodes is terminal and has a reward' in notes


def test_rewards_in_last_steps_that_are_not_terminal(write_rlds, tmp_path):
    episodes = template_episodes((3, 4))
    for episode in episodes:
        episode[-1]['is_terminal'] = False
    folder = str(write_rlds(episodes, REWARDED))
    with pytest.raises(DataError, match=r'the only rewards are in the last steps .* is_terminal'):
        write_store(tmp_path / 's', 'robot', rlds_splits(folder, STATE_AND_REWARD))
    assert not (tmp_path / 's').exists()


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_short_episodes_are_skipped_and_counted(write_rlds, tmp_path, file_format):
    episodes = robot_episodes((0, 1, 4, 1, 0, 3))
    folder = str(write_rlds(episodes, file_format=file_format))
    store = write_store(tmp_path / 's', 'robot', rlds_splits(folder, STATE))
    assert store.splits['train'].lengths.tolist() == [4, 3]
    notes = store.manifest.sources['train']['notes']
    assert 'episodes of fewer than two steps, which were skipped: 4' in notes
    assert 'ignored: observation/image, observation/wrist' in notes


def test_nothing_but_short_episodes(write_rlds):
    with pytest.raises(DataError, match='no episode has two steps'):
        rlds_splits(str(write_rlds(robot_episodes((1, 0)))), STATE)


def test_channel_first_and_grey_images(write_rlds, tmp_path):
    shapes = {'first': (3, 20, 16), 'grey': (20, 16)}
    step = {**STEP, 'observation': {name: bytes_of(s, np.uint8) for name, s in shapes.items()}}
    episodes = robot_episodes((3,))
    rng = np.random.default_rng(1)
    for one in episodes[0]:
        one['observation'] = {n: rng.integers(0, 256, s, np.uint8) for n, s in shapes.items()}
    folder = str(write_rlds(episodes, step))
    for name, turn in (('first', lambda x: x.transpose(1, 2, 0)), ('grey', lambda x: x[..., None])):
        splits = rlds_splits(folder, RldsKeys(f'observation/{name}'))
        store = write_store(tmp_path / name, 'robot', splits)
        expected = [turn(one['observation'][name]) for one in episodes[0]]
        np.testing.assert_array_equal(store.splits['train'].observations, expected)
        assert store.manifest.sources['train']['notes'][0].startswith('observations are')


def test_classes_of_others_are_not_imported(write_rlds, tmp_path, monkeypatch):
    """Neither at the top of features.json nor in the JSON inside its strings."""
    (tmp_path / 'intruder.py').write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = write_rlds(robot_episodes())
    path = folder / 'features.json'
    sound = path.read_text()
    legacy = '{"type": "intruder.Feature", "content": {}}'
    nested = {
        'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict',
        'jsonFeature': {'json': f'{{"steps": {legacy}}}'},
    }
    image = 'tensorflow_datasets.core.features.image_feature.Image'
    assert image in sound
    for text in (sound.replace(image, 'intruder.Feature'), legacy, json.dumps(nested)):
        path.write_text(text)
        with pytest.raises(DataError, match=r'names the feature class intruder\.Feature'):
            rlds_splits(str(folder), IMAGE)
    path.write_text(sound)
    rlds_splits(str(folder), IMAGE)


def test_a_prepared_dataset_of_that_name_is_looked_at_too(write_rlds, tmp_path, monkeypatch):
    folder = write_rlds(robot_episodes())
    path = folder / 'features.json'
    path.write_text(path.read_text().replace('tensorflow_datasets.core', 'intruder', 1))
    prepared = tmp_path / 'tfds' / 'robot' / '0.1.0'
    shutil.copytree(folder, prepared)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'tfds'))
    with pytest.raises(DataError, match='names the feature class intruder'):
        rlds_splits('robot', IMAGE)


def test_exported_metadata_know_no_folder_of_this_machine(store, tmp_path):
    folder = export_tfds(store, tmp_path / 'tfds')
    for path in folder.rglob('*.json'):
        assert str(tmp_path) not in path.read_text(), path
    for path in folder.rglob('*'):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_order_is_that_of_the_files(write_rlds, file_format):
    """TFDS by default reads 16 examples from a file, and then some from others."""
    episodes = robot_episodes((2,) * 50)
    folder = write_rlds(episodes, file_format=file_format, shard_episodes=20)
    blocks = rlds_splits(str(folder), STATE)['train'].read(lambda line: None)
    found = np.concatenate([block for name, block in blocks if name == 'observations'])
    expected = [step['observation']['state'] for episode in episodes for step in episode]
    np.testing.assert_array_equal(found, expected)


def test_the_same_dataset_is_not_prepared_again(write_rlds, tmp_path):
    folder = str(write_rlds(robot_episodes()))
    write_store(tmp_path / 's', 'robot', rlds_splits(folder, IMAGE))
    before = (tmp_path / 's' / 'manifest.json').stat().st_mtime_ns
    write_store(tmp_path / 's', 'robot', rlds_splits(folder, IMAGE))
    assert (tmp_path / 's' / 'manifest.json').stat().st_mtime_ns == before
    with pytest.raises(DataError, match='replace it with --overwrite'):
        write_store(tmp_path / 's', 'robot', rlds_splits(folder, WRIST))


def test_actions_must_be_in_range(write_rlds, tmp_path):
    episodes = robot_episodes()
    episodes[1][2]['action'] = np.array([0, -3.5])
    with pytest.raises(DataError, match=r'split train: actions reach 3\.5 in row 5'):
        write_store(tmp_path / 's', 'robot', rlds_splits(str(write_rlds(episodes)), IMAGE))
    assert not (tmp_path / 's').exists()


def test_images_of_several_sizes(write_rlds, tmp_path):
    episodes = robot_episodes()
    for step in episodes[1]:
        step['observation']['wrist'] = np.ones((9, 9, 3), np.uint8)
    splits = rlds_splits(str(write_rlds(episodes)), WRIST)
    with pytest.raises(DataError, match=r'observations has rows of shape \(9, 9, 3\) from row 3'):
        write_store(tmp_path / 's', 'robot', splits)


@pytest.mark.parametrize('mark', ['is_first', 'is_last'])
def test_two_episodes_in_one(write_rlds, tmp_path, mark):
    episodes = robot_episodes()
    for episode in episodes:
        for number, step in enumerate(episode):
            step['is_first'] = number == 0
    episodes[1][2][mark] = True
    splits = rlds_splits(str(write_rlds(episodes, {**STEP, 'is_first': np.bool_})), IMAGE)
    with pytest.raises(DataError, match=f'episode 1: {mark} is set at step 2 of 5'):
        write_store(tmp_path / 's', 'robot', splits)


def test_discounts_that_are_no_numbers(write_rlds):
    """No mask follows from them."""
    episodes = robot_episodes()
    for step in (step for episode in episodes for step in episode):
        step.update(gain=1, discount=1)
    episodes[0][1]['discount'] = np.nan
    folder = str(write_rlds(episodes, {**STEP, 'gain': np.float32, 'discount': np.float32}))
    with pytest.raises(DataError, match='episode 0: discount holds values that are not numbers'):
        rlds_splits(folder, dataclasses.replace(STATE, reward='gain'))


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_names_with_slashes(write_rlds, tmp_path, file_format):
    """Whether such a feature is read or not."""
    episodes = robot_episodes()
    for step in (step for episode in episodes for step in episode):
        step['arm/state'] = step['observation']['state'][:3]
    folder = str(
        write_rlds(episodes, {**STEP, 'arm/state': bytes_of((3,), np.float64)}, file_format)
    )
    for key in ('arm/state', 'observation/state'):
        store = write_store(tmp_path / key, 'robot', rlds_splits(folder, RldsKeys(key)))
        seen = store.splits['train'].observations
        expected = [step['observation']['state'] for episode in episodes for step in episode]
        np.testing.assert_array_equal(seen, np.float32(expected)[:, : seen.shape[1]])


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_damaged_files(write_rlds, tmp_path, file_format):
    folder = write_rlds(robot_episodes((30, 30)), file_format=file_format)
    splits = rlds_splits(str(folder), IMAGE)
    file = next(path for path in folder.iterdir() if path.name.endswith('-00001'))
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    file.write_bytes(data)
    with pytest.raises(DataError, match='split train: cannot be read: ') as caught:
        write_store(tmp_path / 's', 'robot', splits)
    assert '\n' not in str(caught.value)
    file.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n')
    with pytest.raises(DataError, match='-00001 is a Git LFS pointer; git lfs pull'):
        write_store(tmp_path / 's', 'robot', splits)


@pytest.mark.parametrize(
    ('keys', 'message'),
    [
        (RldsKeys(), r"no observations at 'observation'; steps have action, is_last, .*tion/image"),
        (RldsKeys('observation/image', 'motor'), "no actions at 'motor'"),
        (
            RldsKeys('observation/image', 'observation/image'),
            r'actions is uint8 of shape \(6, 5, 3\)',
        ),
        (RldsKeys('is_last'), r'observations is bool of shape \(\) in a row; it must be uint8'),
    ],
)
def test_unfit_keys(write_rlds, keys, message):
    folder = write_rlds(robot_episodes())
    with pytest.raises(DataError, match=message):
        rlds_splits(str(folder), keys)


def test_no_train_split(write_rlds):
    with pytest.raises(DataError, match='no split named train, only test'):
        rlds_splits(str(write_rlds(robot_episodes(), split='test')), IMAGE)


def test_splits_that_are_not_used_are_named(write_rlds, tmp_path):
    folder = write_rlds(robot_episodes(), others=['test'])
    store = write_store(tmp_path / 'store', 'd', rlds_splits(str(folder), IMAGE))
    assert ', split test' in ' '.join(store.manifest.sources['train']['notes'])


def test_folders_that_are_no_dataset(tmp_path, write_rlds):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='must hold one TFDS dataset; found none'):
        rlds_splits(str(tmp_path / 'empty'), IMAGE)
    write_rlds(robot_episodes())
    write_rlds(robot_episodes(), file_format='tfrecord')
    with pytest.raises(DataError, match=r'must hold one TFDS dataset; found .*array_record, '):
        rlds_splits(str(tmp_path / 'robot'), IMAGE)
    with pytest.raises(DataError, match='TFDS can neither open nor prepare it'):
        rlds_splits(str(tmp_path / 'nowhere'), IMAGE)
    (tmp_path / 'robot' / 'tfrecord' / 'dataset_info.json').write_text('{"na')
    with pytest.raises(DataError, match='TFDS can neither open nor prepare it') as caught:
        rlds_splits(str(tmp_path / 'robot' / 'tfrecord'), IMAGE)
    assert '\n' not in str(caught.value)


def test_image_that_cannot_be_decoded(write_rlds, tmp_path):
    """TensorFlow finds this within an episode, after its file has been read without an error."""
    image_bytes = {**STEP, 'observation': {'image': tfds.features.Text()}}
    step = {key: value for key, value in robot_episodes()[0][0].items() if key != 'observation'}
    steps = [{**step, 'observation': {'image': 'no PNG'}}, {**step, 'is_last': True}]
    steps[1]['observation'] = {'image': 'no PNG'}
    folder = write_rlds([steps], image_bytes, 'tfrecord')
    features = {**STEP, 'observation': {'image': STEP['observation']['image']}}
    as_images = tfds.features.Dataset(features)
    tfds.features.FeaturesDict({'steps': as_images}).save_config(folder)
    with pytest.raises(DataError, match='split train: cannot be read: '):
        rlds_splits(str(folder), IMAGE)


@pytest.mark.parametrize(
    ('name', 'feature', 'value'),
    [
        ('image', bytes_of((3,), np.uint8), np.zeros(3, np.uint8)),
        ('steps', tfds.features.Sequence({'action': np.float32}), {'action': [0.0, 1.0]}),
    ],
)
def test_examples_without_steps(tmp_path, name, feature, value):
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity('flat', tfds.core.Version('0.1.0'), str(tmp_path), 'elsewhere'),
        features=tfds.features.FeaturesDict({name: feature}),
    )
    writer = tfds.core.SequentialWriter(info, 10, file_format='array_record')
    writer.initialize_splits(['train'])
    writer.add_examples({'train': [{name: value}]})
    writer.close_all()
    with pytest.raises(DataError, match='not an RLDS dataset: its examples have no `steps`'):
        rlds_splits(str(tmp_path), IMAGE)


class TinyRobot(tfds.core.GeneratorBasedBuilder):
    """Registered under the name tiny_robot by being defined."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='short'), tfds.core.BuilderConfig(name='long'))

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({'steps': tfds.features.Dataset(STEP)})
        return self.dataset_info_from_features(features)

    def dataset_info_from_features(self, features: Any) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {'train': self._generate_examples(), 'validation': self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        length = 3 if self.builder_config.name == 'short' else 9
        yield 0, {'steps': robot_episodes((length,))[0]}


def test_registered_name_and_config(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'tfds'))
    for config, rows in (('short', 3), ('long', 9)):
        splits = rlds_splits(f'tiny_robot/{config}', IMAGE)
        store = write_store(tmp_path / config, 'robot', splits)
        assert store.splits.keys() == {'train', 'val'}
        np.testing.assert_array_equal(
            open_store(tmp_path / config).splits['val'].observations,
            [step['observation']['image'] for step in robot_episodes((rows,))[0]],
        )
    assert (tmp_path / 'tfds' / 'tiny_robot' / 'long' / '1.0.0').is_dir()


@pytest.mark.parametrize('file_format', ['array_record', 'tfrecord'])
def test_several_observations(write_rlds, tmp_path, file_format):
    episodes = template_episodes((3, 5))
    folder = str(write_rlds(episodes, REWARDED, file_format=file_format))
    names = {'front': 'observation/image', 'wrist': 'observation/wrist', 'state': STATE.observation}
    store = write_store(
        tmp_path / 's', 'robot', rlds_splits(folder, RldsKeys(names, reward='reward'))
    )
    split = store.splits['train']
    assert split.observations.keys() == names.keys()
    for name, key in names.items():
        one = write_store(
            tmp_path / name, 'robot', rlds_splits(folder, RldsKeys(key, reward='reward'))
        ).splits['train']
        np.testing.assert_array_equal(split.observations[name], one.observations)
        np.testing.assert_array_equal(split.terminals, one.terminals)
        np.testing.assert_array_equal(split.labels['masks'], one.labels['masks'])
    with pytest.raises(DataError, match=r"no observations\.x at 'waist'; steps have action"):
        rlds_splits(folder, RldsKeys({'x': 'waist', 'state': STATE.observation}))
