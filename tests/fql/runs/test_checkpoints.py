"""Checkpoints: bit-exact round trips, what is kept, and what damage does."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from encoders.leaves import tree_digest
from fql.agents.configs import EncoderConfig, FQLConfig
from fql.compiled import abstract_state, initial_state
from fql.devices import one_device_mesh
from fql.errors import FQLError
from fql.runs.checkpoint_files import CHECKSUMS
from fql.runs.checkpoints import CheckpointReader, CheckpointWriter
from fql.runs.run_checkpoints import restore_newest
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import RunSpec, read_spec, write_spec
from fql.settings.train_config import TrainConfig

SPEC = RunSpec(
    config=TrainConfig(
        task='t', agent=FQLConfig(hidden_dims=(8,), encoder=EncoderConfig(size='impala_debug'))
    ),
    observation_shape=(8, 8, 3),
    observation_dtype='uint8',
    action_dim=2,
)


@pytest.fixture(scope='module')
def initial():
    return initial_state(make_learner(SPEC), SPEC.config.seed, one_device_mesh())


@pytest.fixture(scope='module')
def abstract():
    return abstract_state(make_learner(SPEC), one_device_mesh())


@pytest.fixture
def state_at(initial):
    return lambda step: dataclasses.replace(initial, step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def saved(tmp_path, state_at):
    """A folder with checkpoints of steps 1, 2 and 3."""
    folder = tmp_path / 'checkpoints'
    with CheckpointWriter(folder, keep_latest=3) as writer:
        for step in (1, 2, 3):
            writer.save(state_at(step), {'note': step})
    return folder


def restored(path, abstract):
    """The newest sound state of a run folder, and the notices."""
    run = RunFolder(path)
    return restore_newest(run, run.spec, abstract)


def array_file(folder, step):
    """The largest file of a checkpoint: arrays' bytes."""
    files = (path for path in (folder / str(step)).rglob('*') if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_bit_exact(saved, abstract, state_at):
    reader = CheckpointReader(saved)
    assert reader.find(None) == 3
    assert tree_digest(reader.restore(abstract, 3)) == tree_digest(state_at(3))
    jax.tree.map(
        np.testing.assert_array_equal, reader.restore_params(abstract, 3), state_at(3).params
    )
    assert reader.metadata(2)['note'] == 2


def test_kept_are_the_latest_the_best_and_every_nth(tmp_path, state_at):
    # NaN, before and after the best; each its own object, as when read from a file.
    nans = {step: float('nan') for step in (1, 3, 7)}
    successes = {**nans, 2: 0.9, 5: 0.3, 6: 0.4}
    for resumed in (1, 5):  # A restart in between must not forget the best.
        with CheckpointWriter(tmp_path, 2, 5, lambda: successes) as writer:
            for step in range(resumed, resumed + 4):
                writer.save(state_at(step), {})
    assert finished_steps(tmp_path) == [2, 5, 7, 8]


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, state_at, monkeypatch):
    synced, before_rename = {}, {}
    fsync, rename = os.fsync, os.rename

    def note(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def note_rename(old, new):
        if Path(new) == tmp_path / '1':
            before_rename.update(synced)
            synced.clear()
        rename(old, new)

    monkeypatch.setattr(os, 'fsync', note)
    monkeypatch.setattr(os, 'rename', note_rename)
    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        writer.save(state_at(1), {})
    monkeypatch.undo()
    checkpoint = tmp_path / '1'
    written = [checkpoint, *checkpoint.rglob('*')]
    assert len(written) > 10
    for path in written:
        status = path.stat()
        assert before_rename.get(status.st_ino) == status.st_size, path
    assert tmp_path.stat().st_ino in synced  # The new name, after it.


def test_metadata_are_those_at_the_time_of_the_save(tmp_path, state_at, monkeypatch):
    """The trainer goes on counting rows while Orbax writes."""
    changed = threading.Event()
    dumps = json.dumps

    def wait_and_dump(*args, **settings):
        if threading.current_thread() is not threading.main_thread():
            assert changed.wait(60)
        return dumps(*args, **settings)

    given = {'rows': {'train.csv': 1}}
    monkeypatch.setattr(json, 'dumps', wait_and_dump)
    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        writer.save(state_at(1), given)
        given['rows']['train.csv'] = 2
        changed.set()
    assert CheckpointReader(tmp_path).metadata(1) == {'rows': {'train.csv': 1}}


def test_an_evaluation_that_ends_after_the_save_counts(tmp_path, state_at):
    """One repeated after an interruption, or by a watcher; the latest of equal ones is kept."""
    successes = {}
    with CheckpointWriter(tmp_path, 2, 0, lambda: successes) as writer:
        for step in range(1, 8):
            writer.save(state_at(step), {})
            successes |= {2: {1: 0.5}, 4: {3: 0.5}, 6: {6: 0.1}}.get(step, {})
            if step == 3:
                assert finished_steps(tmp_path)[0] == 1
    assert finished_steps(tmp_path) == [3, 6, 7]


def test_a_folder_that_cannot_be_deleted_stops_no_run(tmp_path, state_at, monkeypatch):
    """As on NFS, where a reader's open file keeps a folder from being empty."""
    real = os.rmdir

    def rmdir(path, **arguments):
        if '.unfinished-' in os.fspath(path) and Path(path).name.endswith('-1'):
            raise OSError(errno.ENOTEMPTY, 'Directory not empty')
        real(path, **arguments)

    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        writer.save(state_at(1), {})
        writer.wait()
        monkeypatch.setattr(os, 'rmdir', rmdir)
        writer.save(state_at(2), {})
        writer.wait()
    assert finished_steps(tmp_path) == [2]
    with CheckpointWriter(tmp_path, keep_latest=1):
        pass
    monkeypatch.undo()
    with CheckpointWriter(tmp_path, keep_latest=1):
        assert [path.name for path in tmp_path.iterdir()] == ['2']


def test_a_checkpoint_that_is_read_is_deleted_after_a_later_save(tmp_path, state_at, abstract):
    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        writer.save(state_at(1), {})
        writer.wait()
        reader = CheckpointReader(tmp_path)
        with reader.reading(None) as step:
            writer.save(state_at(2), {})
            writer.wait()
            assert tree_digest(reader.restore(abstract, step)) == tree_digest(state_at(1))
            assert finished_steps(tmp_path) == [1, 2]
        writer.save(state_at(3), {})
    assert finished_steps(tmp_path) == [3]


def test_where_no_locks_are_checkpoints_are_read_and_deleted_all_the_same(
    tmp_path, state_at, monkeypatch
):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        for step in (1, 2):
            writer.save(state_at(step), {})
    with CheckpointReader(tmp_path).reading(None) as step:
        assert step == 2
    assert finished_steps(tmp_path) == [2]


def test_a_step_is_saved_once_even_while_its_save_is_under_way(tmp_path, state_at):
    with CheckpointWriter(tmp_path, keep_latest=2) as writer:
        writer.save(state_at(1), {})
        writer.save(state_at(1), {})
        writer.wait()
        writer.save(state_at(1), {})
    assert finished_steps(tmp_path) == [1]


def test_only_folders_named_by_a_step_are_checkpoints(saved):
    for name in ('x', '07', '4.unfinished', '.unfinished-5'):
        (saved / name).mkdir()
    (saved / '8').touch()
    assert finished_steps(saved) == [1, 2, 3]
    with pytest.raises(FQLError, match=r'no checkpoint of update 7 .*there are \[1, 2, 3\]'):
        CheckpointReader(saved).find(7)
    with CheckpointWriter(saved, keep_latest=3):
        assert not (saved / '.unfinished-5').exists()  # What a killed process has left.


def test_an_empty_folder_is_no_checkpoint_and_blocks_none(saved, state_at, abstract, tmp_path):
    (saved / '9').mkdir()
    assert finished_steps(saved) == [1, 2, 3]
    state, notices = restored(tmp_path, abstract)
    assert (int(state.step), notices) == (3, [])
    with CheckpointWriter(saved, keep_latest=3) as writer:
        writer.save(state_at(9), {})
    assert CheckpointReader(saved).find(None) == 9


def test_no_checkpoints(tmp_path, abstract):
    with pytest.raises(FQLError, match='no checkpoints in'):
        CheckpointReader(tmp_path / 'none').find(None)
    with pytest.raises(FQLError, match='no finished checkpoint'):
        CheckpointReader(tmp_path).find(None)
    assert restored(tmp_path, abstract) == (None, [])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize('damage', [flip_bit, truncate, lambda path: path.unlink()])
def test_damage_falls_back_to_the_newest_sound_step(saved, abstract, state_at, tmp_path, damage):
    damage(array_file(saved, 3))
    flip_bit(array_file(saved, 2))
    reader = CheckpointReader(saved)
    notices = []
    assert reader.find(None, notices.append) == 1
    assert [notice.split(' (')[0] for notice in notices] == [
        f'checkpoint of update {step} is damaged' for step in (3, 2)
    ]
    with pytest.raises(FQLError, match='damaged checkpoint'):
        reader.find(3)
    state, notices = restored(tmp_path, abstract)
    assert tree_digest(state) == tree_digest(state_at(1))
    assert len(notices) == 2
    assert 'update 3 is damaged' in notices[0]
    assert finished_steps(saved) == [1]
    assert len(list(RunFolder(tmp_path).damaged.iterdir())) == 2
    with CheckpointWriter(saved, keep_latest=3) as writer:  # The steps are free again.
        writer.save(state_at(2), {})
    assert CheckpointReader(saved).find(None) == 2


@pytest.mark.parametrize(
    'change',
    [
        lambda step: (step / CHECKSUMS).unlink(),
        lambda step: (step / CHECKSUMS).write_bytes(b''),
        lambda step: (step / CHECKSUMS).write_bytes(bytes(4096)),
        lambda step: (step / CHECKSUMS).write_text('[' * 100_000),
        lambda step: (step / CHECKSUMS).write_text('{"sha256": ["a"]}'),
        lambda step: (step / CHECKSUMS).write_text('{"sha256": {}}'),
        lambda step: (step / CHECKSUMS).write_text('{"sha256": {"a": 1}}'),
        lambda step: (step / 'extra').touch(),
        lambda step: shutil.rmtree(step / 'training' / 'd'),
        lambda step: shutil.rmtree(step / 'metadata'),
        lambda step: (step / 'commit_success.txt').unlink(),
        lambda step: [path.unlink() for path in step.rglob('*') if path.is_file()],
    ],
)
def test_damage_of_any_file_is_found(saved, abstract, tmp_path, change):
    change(saved / '3')
    with pytest.raises(FQLError, match=r'^damaged checkpoint in [^\n]*; there are'):
        CheckpointReader(saved).find(3)
    assert CheckpointReader(saved).find(None) == 2
    state, (notice,) = restored(tmp_path, abstract)
    assert int(state.step) == 2
    assert 'update 3 is damaged' in notice


def test_what_file_managers_leave_is_no_damage(saved):
    for folder in [saved, *(path for path in saved.rglob('*') if path.is_dir())]:
        for name in ('.DS_Store', '._checksums.json', 'Thumbs.db'):
            (folder / name).write_bytes(b'x')
    assert CheckpointReader(saved).find(None) == 3


@pytest.mark.parametrize('given', [{}, {'versions': None}, {'versions': ['jax']}])
def test_versions_that_are_none_are_reported(tmp_path, state_at, given):
    with CheckpointWriter(tmp_path, keep_latest=1) as writer:
        writer.save(state_at(1), given)
    with pytest.raises(FQLError, match='/1: metadata: versions must be'):
        CheckpointReader(tmp_path).versions(1)


def test_all_damaged(saved, abstract, tmp_path):
    for step in (1, 2, 3):
        flip_bit(array_file(saved, step))
    with pytest.raises(FQLError, match=r'damaged checkpoint in .* update 3: .* update 1: '):
        restored(tmp_path, abstract)
    assert finished_steps(saved) == [1, 2, 3]


@pytest.mark.parametrize('fault', [PermissionError('Permission denied'), OSError('Stale handle')])
def test_what_cannot_be_read_is_not_called_damaged(saved, abstract, tmp_path, monkeypatch, fault):
    """Otherwise a fault of the disk or of permissions would cost sound checkpoints."""

    def fail(*args):
        raise fault

    for module, name in ((hashlib, 'file_digest'), (os, 'scandir')):  # A file, and a folder.
        monkeypatch.setattr(module, name, fail)
        with pytest.raises(FQLError, match=r'3 cannot be read: (Permission denied|Stale handle)'):
            restored(tmp_path, abstract)
        monkeypatch.undo()

    def out_of_memory(*args, **kwargs):
        raise RuntimeError('out of memory\nand more')

    monkeypatch.setattr(ocp.Checkpointer, 'restore', out_of_memory)
    with pytest.raises(FQLError, match=r'as they were written: RuntimeError: out of memory$'):
        restored(tmp_path, abstract)
    assert finished_steps(saved) == [1, 2, 3]
    assert not RunFolder(tmp_path).damaged.exists()


def test_a_checkpoint_of_another_agent_is_no_damage(saved, tmp_path):
    agent = dataclasses.replace(SPEC.config.agent, hidden_dims=(9,))
    other = dataclasses.replace(SPEC, config=dataclasses.replace(SPEC.config, agent=agent))
    with pytest.raises(
        FQLError, match=r'critic.*saved float32 \(2, 8\), expected float32 \(2, 9\)'
    ):
        restored(tmp_path, abstract_state(make_learner(other), one_device_mesh()))
    assert finished_steps(saved) == [1, 2, 3]


def test_a_failed_save_is_reported_and_earlier_ones_stay(saved, state_at):
    def save_into_nothing():
        with CheckpointWriter(saved, keep_latest=3) as writer:
            saved.rename(saved.with_name('moved'))
            saved.write_text('in the way')
            writer.save(state_at(4), {})

    with pytest.raises(FQLError, match=r'cannot save update 4'):
        save_into_nothing()
    assert finished_steps(saved.with_name('moved')) == [1, 2, 3]


@pytest.mark.parametrize(
    'change',
    [
        lambda s: dataclasses.replace(s, key=jax.random.key(1)),
        lambda s: dataclasses.replace(s, step=s.step + 1),
        lambda s: dataclasses.replace(
            s, target_params=jax.tree.map(lambda x: x + 1e-7, s.target_params)
        ),
        lambda s: dataclasses.replace(s, opt_state=jax.tree.map(lambda x: x + 1, s.opt_state)),
    ],
)
def test_the_digest_sees_any_change(state_at, change):
    assert tree_digest(state_at(1)) == tree_digest(state_at(1))
    assert tree_digest(change(state_at(1))) != tree_digest(state_at(1))


def test_no_leaf_is_weakly_typed(initial):
    """A checkpoint forgets weak types, which would change the arithmetic after a resume."""
    leaves = jax.tree.leaves(dataclasses.replace(initial, key=jax.random.key_data(initial.key)))
    assert not any(leaf.weak_type for leaf in leaves)


def test_specification_round_trip(tmp_path):
    write_spec(RunFolder(tmp_path), SPEC)
    assert read_spec(RunFolder(tmp_path)) == SPEC


def test_a_checkpoint_that_its_trainer_deletes_meanwhile(tmp_path):
    with pytest.raises(FQLError, match='was deleted while it was read'):
        CheckpointReader(tmp_path).metadata(3)
