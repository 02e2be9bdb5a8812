"""Verification of arrays: which are read, which are recorded, and by which process."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DamagedError
from data_pipeline.files import locked
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.verification import Verification, verify
from data_pipeline.store.writer import write_store

ARRAYS = ('observations', 'actions', 'qpos', 'qvel')


@pytest.fixture
def store(make_arrays, tmp_path) -> FrameStore:
    return make_store(tmp_path, make_arrays())


def make_store(folder: Path, arrays: dict[str, np.ndarray], **options: bool) -> FrameStore:
    np.savez(folder / 'd.npz', **arrays)
    return write_store(folder / 'data' / 'd', 'd', npz_splits(folder / 'd.npz'), **options)


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Changes one bit of the array, in place."""
    before = path.stat()
    with path.open('r+b') as file:
        file.seek(-2, os.SEEK_END)
        [byte] = file.read(1)
        file.seek(-2, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run(store: FrameStore, mode: str) -> None:
    """Verifies in the background, then waits, as a training does."""
    with Verification(store.path, mode) as verification:
        verification.add(store.stored_arrays)
        verification.wait(lambda done, total: None, lambda: None)


@pytest.mark.parametrize('name', ARRAYS)
def test_one_bit_of_any_array_is_found(store, name):
    run(store, 'once')
    path = store.path / 'train' / f'{name}.npy'
    flip(path)
    for _ in range(2):  # A damaged array is never recorded as sound.
        with pytest.raises(DamagedError, match=f'^{path} is not what was written') as caught:
            run(store, 'once')
        assert '\n' not in str(caught.value)
        assert '--overwrite' in str(caught.value)
    run(store, 'never')


def test_ends_of_trajectories_are_looked_at_when_the_store_is_opened(store):
    """All indices are computed from them."""
    flip(store.path / 'train' / 'terminals.npy')
    with pytest.raises(DamagedError, match=r'train/terminals\.npy is not what was written'):
        open_store(store.path)


def test_what_was_read_once_is_not_read_again(store):
    run(store, 'once')
    flip(store.path / 'train' / 'actions.npy', keep_time=True)
    run(store, 'once')
    with pytest.raises(DamagedError, match='actions'):
        run(store, 'always')


@pytest.mark.parametrize('change', ['time', 'inode', 'size', 'checksum'])
def test_another_file_is_read_again(store, change):
    run(store, 'once')
    path = store.path / 'train' / 'actions.npy'
    flip(path, keep_time=True)
    if change == 'time':
        os.utime(path)
    elif change == 'inode':
        shutil.copy2(path, path.with_name('copy'))
        os.replace(path.with_name('copy'), path)
    elif change == 'size':
        before = path.stat()
        os.truncate(path, before.st_size - 1)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        manifest = store.path / 'manifest.json'
        digest = store.checksums['train']['actions']
        manifest.write_text(manifest.read_text().replace(digest, digest[::-1]))
        store = open_store(store.path)
    with pytest.raises(DamagedError, match='actions'):
        run(store, 'once')


def test_a_file_that_is_gone(store):
    (store.path / 'train' / 'qvel.npy').unlink()
    with pytest.raises(DamagedError, match=r'qvel\.npy cannot be read: No such file'):
        run(store, 'once')


@pytest.mark.parametrize(
    'content',
    [b'', b'{', b'\xff', b'[]', b'{}', b'{"arrays": []}', b'{"arrays": {"train/actions.npy": 3}}'],
)
def test_a_damaged_record_only_costs_time(store, content):
    record = store.path.with_name('.d.verified.json')
    run(store, 'once')
    sound = json.loads(record.read_text())
    assert sorted(sound['arrays']) == sorted(f'train/{name}.npy' for name in (*ARRAYS, 'terminals'))
    record.write_bytes(content)
    run(store, 'once')
    assert json.loads(record.read_text())['arrays'].keys() == sound['arrays'].keys()


def test_a_store_that_is_only_read(small_disk, make_arrays):
    store = make_store(small_disk, make_arrays())
    before = sorted(small_disk.rglob('*'))
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    try:
        for mode in ('once', 'once', 'always'):
            run(store, mode)
        verify(store.path, store.stored_arrays, lambda done, total: None)
        assert sorted(small_disk.rglob('*')) == before
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', str(small_disk)], check=True)
    flip(store.path / 'train' / 'qpos.npy')
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    try:
        with pytest.raises(DamagedError, match='qpos'):
            run(store, 'once')
    finally:
        subprocess.run(['mount', '-o', 'remount,rw', str(small_disk)], check=True)


def held(store: FrameStore):
    """Holds the lock, as another process that verifies the store."""
    return locked(store.path.with_name('.d.verified.lock'), 'verifies the store')


@pytest.mark.parametrize('mode', ['once', 'always'])
def test_what_another_process_has_read_meanwhile_is_not_read_again(store, mode):
    def flip_all() -> None:
        for name in ARRAYS:
            flip(store.path / 'train' / f'{name}.npy', keep_time=True)

    with Verification(store.path, mode) as verification:
        with held(store):
            flip_all()
            verification.add(store.stored_arrays)
            time.sleep(0.2)  # It would read now, and find damage.
            flip_all()
            run(store, 'always')  # The other process, which records it.
            flip_all()
        verification.wait(lambda done, total: None, lambda: None)


def test_a_process_that_hangs_holds_nobody_up(store):
    with held(store):
        with Verification(store.path, 'once') as verification:
            verification.add(store.stored_arrays)  # It ends before it has begun.
        run(store, 'once')
        flip(store.path / 'train' / 'actions.npy')
        with pytest.raises(DamagedError, match='actions'):
            run(store, 'once')


def test_a_store_that_is_replaced_meanwhile_is_no_damage(store, make_arrays, tmp_path):
    """The run continues with the files that it has mapped, and these are read."""
    with Verification(store.path, 'once') as verification:
        with held(store):
            verification.add(store.stored_arrays)
            other = make_store(tmp_path, make_arrays(seed=1), overwrite=True)
        verification.wait(lambda done, total: None, lambda: None)
    flip(other.path / 'train' / 'actions.npy')
    with pytest.raises(DamagedError, match='actions'):
        run(other, 'once')


def test_progress_and_leave_while_one_waits(store):
    calls: list[tuple[int, int]] = []
    with Verification(store.path, 'once') as verification:
        verification.add(store.stored_arrays)
        verification.wait(lambda *call: calls.append(call), lambda: None)
        verification.check()
    total = sum(array.nbytes for array in store.splits['train'].arrays.values())
    assert calls[-1] == (total, total)


def test_a_file_that_changes_in_place_is_verified_again(store):
    """As by a copy over a store that a run reads, after it was verified."""

    def wait() -> None:
        verification.wait(lambda done, total: None, lambda: None)

    with Verification(store.path, 'once') as verification:
        verification.add(store.stored_arrays)
        wait()
        assert verification.is_done()
        path = store.path / 'train' / 'actions.npy'
        sound = path.read_bytes()
        path.write_bytes(sound)  # Another time, the same bytes.
        assert not verification.is_done()
        wait()
        assert verification.is_done()
        path.replace(path.with_name('old'))  # The run has the old file open.
        path.write_bytes(bytes(len(sound)))
        assert verification.is_done()
        path.with_name('old').write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert not verification.is_done()
        with pytest.raises(DamagedError, match=f'^{path} is not what was written'):
            wait()
