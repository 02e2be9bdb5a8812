import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.files import write_npy_header
from data_pipeline.schema import from_json
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.verification import check_array, verify
from data_pipeline.store.writer import write_store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path, make_arrays) -> Path:
    (tmp_path / 'source').mkdir()
    path = tmp_path / 'source' / 'tiny-v0.npz'
    np.savez_compressed(path, **make_arrays())
    return path


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / 'data' / 'tiny-v0'


def read_all(store: FrameStore) -> None:
    for array in store.stored_arrays:
        check_array(array)


def names(folder: Path) -> list[str]:
    """The names in a folder, except locks."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


def test_store_holds_the_source(source, target, make_arrays):
    store = write_store(target, 'tiny-v0', npz_splits(source))
    arrays = make_arrays()
    split = store.splits['train']
    assert store.splits.keys() == {'train'}
    assert split.info.keys() == {'qpos', 'qvel'}
    stored = {
        'observations': split.observations,
        'actions': split.actions,
        'terminals': split.terminals,
        **split.info,
    }
    for name, array in stored.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
        plain = np.load(target / 'train' / f'{name}.npy', allow_pickle=False)
        np.testing.assert_array_equal(plain, arrays[name])
        data_start = (target / 'train' / f'{name}.npy').stat().st_size - array.nbytes
        assert data_start % 64 == 0
        with pytest.raises(ValueError, match='read-only'):
            array[0] = 0
    assert names(target.parent) == ['tiny-v0']


def test_manifest(source, target, make_arrays):
    np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays((3, 3), seed=1))
    store = write_store(target, 'tiny-v0', npz_splits(source))
    manifest = json.loads((target / 'manifest.json').read_text())
    assert from_json(Manifest, manifest) == store.manifest
    assert manifest['dataset'] == 'tiny-v0'
    assert manifest['sources']['train'] == {
        'path': str(source),
        'bytes': source.stat().st_size,
        'sha256': hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert (manifest['splits']['train']['rows'], manifest['splits']['val']['rows']) == (14, 6)
    assert manifest['splits']['train']['trajectories'] == 4
    assert manifest['splits']['train']['arrays']['observations']['shape'] == [14, 8, 8, 3]
    np.testing.assert_array_equal(
        store.splits['val'].observations, make_arrays((3, 3), seed=1)['observations']
    )


def test_vectors_are_stored_as_float32(tmp_path, target, make_arrays):
    arrays = make_arrays(shape=(9,), dtype=np.float64)
    np.savez(tmp_path / 'd.npz', **arrays)
    frames = write_store(target, 'd', npz_splits(tmp_path / 'd.npz')).splits['train'].observations
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, arrays['observations'].astype(np.float32))


def test_vectors_must_be_finite(tmp_path, target, make_arrays):
    arrays = make_arrays(shape=(9,), dtype=np.float32)
    arrays['observations'][5, 2] = np.nan
    np.savez(tmp_path / 'd.npz', **arrays)
    with pytest.raises(DataError, match='observations holds values that are not finite'):
        write_store(target, 'd', npz_splits(tmp_path / 'd.npz'))
    assert names(target.parent) == []


def test_numeric_terminals_are_stored_as_bool(tmp_path, target, make_arrays):
    arrays = make_arrays()
    np.savez(tmp_path / 'd.npz', **{**arrays, 'terminals': arrays['terminals'].astype(np.int64)})
    terminals = write_store(target, 'd', npz_splits(tmp_path / 'd.npz')).splits['train'].terminals
    assert terminals.dtype == bool
    np.testing.assert_array_equal(terminals, arrays['terminals'])


def test_progress_reaches_the_total(source, target, make_arrays):
    np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays((3, 3), seed=1))
    calls: list[tuple[int, int]] = []
    write_store(target, 'tiny-v0', npz_splits(source), progress=lambda *call: calls.append(call))
    arrays = [*make_arrays().values(), *make_arrays((3, 3)).values()]
    total = sum(array.nbytes for array in arrays)
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {total}
    assert done == sorted(done)
    assert done[-1] == total


def test_same_source_is_not_prepared_again(source, target):
    write_store(target, 'tiny-v0', npz_splits(source))
    before = (target / 'manifest.json').stat().st_mtime_ns
    store = write_store(target, 'tiny-v0', npz_splits(source))
    assert store.splits.keys() == {'train'}
    assert (target / 'manifest.json').stat().st_mtime_ns == before


@pytest.mark.parametrize('change', ['contents', 'new val file', 'name'])
def test_another_source_needs_overwrite(source, target, make_arrays, change):
    write_store(target, 'tiny-v0', npz_splits(source))
    (target / 'labels').mkdir()
    if change == 'contents':
        np.savez(source, **make_arrays(seed=1))
    elif change == 'new val file':
        np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays(seed=1))
    name = 'other-v0' if change == 'name' else 'tiny-v0'
    with pytest.raises(DataError, match='replace it with --overwrite'):
        write_store(target, name, npz_splits(source))
    store = write_store(target, name, npz_splits(source), overwrite=True)
    assert store.manifest.dataset == name
    seed = 1 if change == 'contents' else 0
    np.testing.assert_array_equal(
        store.splits['train'].observations, make_arrays(seed=seed)['observations']
    )
    assert not (target / 'labels').exists()  # These belonged to the old data.
    assert names(target.parent) == ['tiny-v0']


@pytest.mark.parametrize('overwrite', [False, True])
def test_what_is_no_store_is_never_removed(source, target, overwrite):
    target.mkdir(parents=True)
    (target / 'thesis.tex').write_text('dear')
    with pytest.raises(DataError, match='is not a frame store'):
        write_store(target, 'tiny-v0', npz_splits(source), overwrite=overwrite)
    assert (target / 'thesis.tex').read_text() == 'dear'


def test_bad_file_leaves_nothing(source, target, make_arrays):
    arrays = make_arrays()
    arrays['actions'][3] = 1.5
    np.savez(source, **arrays)
    with pytest.raises(DataError, match=r'tiny-v0.npz: actions reach 1\.5'):
        write_store(target, 'tiny-v0', npz_splits(source))
    assert names(target.parent) == []


def test_damage_at_the_very_end_leaves_nothing(source, target, make_arrays):
    """The checksum of the frames is compared after all of them have been written."""
    np.savez(source, **make_arrays())
    data = bytearray(source.read_bytes())
    place = bytes(data).index(make_arrays()['observations'][-1].tobytes())
    data[place + 100] ^= 1
    source.write_bytes(data)
    with pytest.raises(DataError, match='Bad CRC-32'):
        write_store(target, 'tiny-v0', npz_splits(source))
    assert names(target.parent) == []


def test_bad_file_leaves_the_old_store(source, target, make_arrays):
    write_store(target, 'tiny-v0', npz_splits(source))
    arrays = make_arrays(seed=1)
    arrays['terminals'][-1] = False
    np.savez(source, **arrays)
    with pytest.raises(DataError, match='last row'):
        write_store(target, 'tiny-v0', npz_splits(source), overwrite=True)
    frames = open_store(target).splits['train'].observations
    np.testing.assert_array_equal(frames, make_arrays()['observations'])
    assert names(target.parent) == ['tiny-v0']


def test_bad_val_file_leaves_nothing(source, target, make_arrays):
    np.savez(source.with_name('tiny-v0-val.npz'), **(make_arrays() | {'actions': np.zeros(14)}))
    with pytest.raises(DataError, match=r'tiny-v0-val\.npz: actions'):
        write_store(target, 'tiny-v0', npz_splits(source))
    assert names(target.parent) == []


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'observations': (6, 9, 9, 3)}, r'observations .* uint8 \(9, 9, 3\), .* \(8, 8, 3\)'),
        ({'actions': (6, 5)}, r'actions has rows of float32 \(5,\), .* are float32 \(4,\)'),
        ({'observations': (6, 7)}, r'observations .* float32 \(7,\), .* uint8 \(8, 8, 3\)'),
        ({'qpos': (6, 4)}, r'qpos has rows of float32 \(4,\), .* are float32 \(5,\)'),
    ],
)
def test_splits_have_to_fit_together(source, target, make_arrays, change, message):
    val = make_arrays((3, 3), seed=1)
    for name, shape in change.items():
        dtype = np.uint8 if len(shape) == 4 else np.float32
        val[name] = np.ones(shape, dtype)
    np.savez(source.with_name('tiny-v0-val.npz'), **val)
    with pytest.raises(DataError, match=rf'tiny-v0-val\.npz: {message}') as caught:
        write_store(target, 'tiny-v0', npz_splits(source), progress=pytest.fail)
    assert '\n' not in str(caught.value)
    assert not target.parent.exists()


def test_a_split_may_lack_what_is_not_required(source, target, make_arrays):
    val = make_arrays((3, 3), seed=1)
    del val['qvel']
    np.savez(source.with_name('tiny-v0-val.npz'), **val)
    assert 'qvel' not in write_store(target, 'tiny-v0', npz_splits(source)).splits['val'].info


def test_full_disk_is_reported_before_anything_is_written(source, target, monkeypatch):
    usage = type('Usage', (), {'free': 1000})
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage)
    with pytest.raises(DataError, match='of disk'):
        write_store(target, 'tiny-v0', npz_splits(source))
    assert names(target.parent) == []


PREPARE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from data_pipeline.errors import DataError
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.writer import write_store

resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    write_store(Path(sys.argv[1]), 'tiny-v0', npz_splits(Path(sys.argv[2])), overwrite=True)
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize('stands', [False, True])
def test_disk_that_fills_up_meanwhile(source, target, make_arrays, run_python, stands):
    """The system refuses to write more than 3000 bytes to a file; only observations are larger."""
    if stands:
        write_store(target, 'tiny-v0', npz_splits(source))
    np.savez(source, **make_arrays((20, 20), seed=1))
    done = run_python(PREPARE_ON_A_FULL_DISK, target, source)
    assert done.returncode == 0, done.stderr
    assert f'{target}: cannot be written: ' in done.stdout
    assert 'nothing was changed' in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert names(target.parent) == (['tiny-v0'] if stands else [])
    if stands:
        frames = open_store(target).splits['train'].observations
        np.testing.assert_array_equal(frames, make_arrays()['observations'])


PREPARE_SLOWLY = """
import sys, time
from pathlib import Path
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.writer import write_store

def report(done, total):
    print(done, flush=True)
    time.sleep(60)

splits = npz_splits(Path(sys.argv[2]))
write_store(Path(sys.argv[1]), 'tiny-v0', splits, overwrite=True, progress=report)
"""


def test_kill_leaves_nothing_that_looks_finished(source, target, make_arrays):
    process = subprocess.Popen(
        [sys.executable, '-c', PREPARE_SLOWLY, str(target), str(source)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # It writes now.
    pending = target.parent / '.tiny-v0.incomplete'
    assert pending.exists()
    with pytest.raises(DataError, match='no frame store here'):
        open_store(target)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (pending / 'manifest.json').exists()
    store = write_store(target, 'tiny-v0', npz_splits(source))
    assert names(target.parent) == ['tiny-v0']
    np.testing.assert_array_equal(store.splits['train'].observations, make_arrays()['observations'])


def test_kill_between_the_renames_of_an_overwrite(source, target):
    """The old store is renamed, and the new one is not in its place yet."""
    write_store(target, 'tiny-v0', npz_splits(source))
    target.rename(target.with_name('.tiny-v0.replaced'))
    target.with_name('.tiny-v0.incomplete').mkdir()
    before = time.time_ns()
    store = write_store(target, 'tiny-v0', npz_splits(source))
    assert (target / 'manifest.json').stat().st_mtime_ns < before
    assert store.path == target
    assert names(target.parent) == ['tiny-v0']


@pytest.mark.parametrize('same_source', [True, False])
def test_who_comes_second_waits_for_the_store(source, target, make_arrays, same_source):
    other = source if same_source else source.with_name('other.npz')
    if not same_source:
        np.savez(other, **make_arrays(seed=1))
    threads, results = [], []

    def prepare_other() -> None:
        try:
            results.append(write_store(target, 'tiny-v0', npz_splits(other)))
        except DataError as error:
            results.append(error)

    def begin_another(*_: int) -> None:
        if not threads:
            threads.append(threading.Thread(target=prepare_other))
            threads[0].start()
            threads[0].join(0.5)
            assert not results  # It waits.

    read_all(write_store(target, 'tiny-v0', npz_splits(source), progress=begin_another))
    threads[0].join(60)
    if same_source:
        read_all(results[0])
    else:
        assert 'made from other source files' in str(results[0])
    assert names(target.parent) == ['tiny-v0']


def test_all_of_a_store_is_on_the_disk_before_it_has_its_name(
    source, target, make_arrays, monkeypatch
):
    np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays((3, 3), seed=1))
    synced, fsync, rename = {}, os.fsync, os.rename
    before_rename = {}

    def note(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def note_rename(old, new):
        before_rename.update(synced)
        rename(old, new)

    monkeypatch.setattr(os, 'fsync', note)
    monkeypatch.setattr(os, 'rename', note_rename)
    write_store(target, 'tiny-v0', npz_splits(source))
    files = [path for path in target.rglob('*') if path.is_file()]
    assert len(files) == 11
    for path in files:
        assert before_rename[path.stat().st_ino] == path.stat().st_size, path
    for folder in (target, target / 'train', target / 'val'):
        assert folder.stat().st_ino in before_rename
    # The folder of the new name, and the one where that folder is new.
    assert {target.parent.stat().st_ino, target.parent.parent.stat().st_ino} <= synced.keys()


def edit_manifest(target: Path, **changes: object) -> None:
    path = target / 'manifest.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swap_shape(target: Path) -> None:
    path = target / 'manifest.json'
    path.write_text(path.read_text().replace('"<f4"', '"<i4"'))


def edit_train(target: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a store's record of the split `train`."""
    splits = json.loads((target / 'manifest.json').read_text())['splits']
    change(splits['train'])
    edit_manifest(target, splits=splits)


def flatten_images(target: Path) -> None:
    """A store of images whose rows are all of one axis, in the file and in the manifest."""
    path = target / 'train' / 'observations.npy'
    array = np.load(path)
    flat = (len(array), array[0].size)
    with path.open('r+b') as file:
        write_npy_header(file, flat, array.dtype)
    edit_train(target, lambda train: train['arrays']['observations'].update(shape=flat))


def scale_actions(target: Path) -> None:
    sources = json.loads((target / 'manifest.json').read_text())['sources']
    sources['train']['action_range'] = {'low': [0], 'high': [9]}
    edit_manifest(target, sources=sources)


FAULTS = {
    'flat images': (flatten_images, 'observations is uint8'),
    'an observation without a name': (
        lambda t: edit_train(
            t, lambda x: x['arrays'].update({'observations.': x['arrays'].pop('observations')})
        ),
        "'' is not a valid name",
    ),
    'a range of other actions': (scale_actions, 'a range of 1 actions'),
    'trajectories': (
        lambda t: edit_train(t, lambda x: x.update(trajectories=7)),
        'not as many trajectories in train',
    ),
    'newer format': (lambda t: edit_manifest(t, format_version=2), 'format 2 is newer'),
    'no manifest': (lambda t: (t / 'manifest.json').unlink(), 'no frame store here'),
    'half a manifest': (lambda t: os.truncate(t / 'manifest.json', 50), 'damaged'),
    'empty manifest': (lambda t: (t / 'manifest.json').write_text('{}'), 'damaged'),
    'missing array': (lambda t: (t / 'train/qpos.npy').unlink(), 'qpos.npy is missing'),
    'short array': (
        lambda t: os.truncate(t / 'train/observations.npy', 2000),
        'observations.npy has 2000 bytes, not 2816',
    ),
    'another type': (swap_shape, 'actions.npy is float32'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faulty_stores_are_not_opened(source, target, name):
    change, message = FAULTS[name]
    write_store(target, 'tiny-v0', npz_splits(source))
    change(target)
    with pytest.raises(DataError, match=message) as caught:
        open_store(target)
    assert str(target) in str(caught.value)


FOR_OTHERS = """
import os, sys
from pathlib import Path
from data_pipeline.errors import DataError
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.frame_store import open_store
os.setuid(65534)
for attempt in (lambda: open_store(Path(sys.argv[1])), lambda: file_splits(Path(sys.argv[2]), 'd')):
    try:
        attempt()
    except DataError as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason='only root can become another user')
def test_what_another_user_may_not_read_is_not_called_damaged(run_python, tmp_path):
    """A store's manifest and a source."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to others.
        os.chmod(folder, 0o755)
        manifest, source = Path(folder) / 'd' / 'manifest.json', Path(folder) / 'd.npz'
        manifest.parent.mkdir()
        for path in (manifest, source):
            path.touch(0)
        lines = run_python(FOR_OTHERS, manifest.parent, source).stdout.splitlines()
    assert lines == [
        f'{manifest.parent}: {manifest} cannot be read: Permission denied',
        f'{source}: cannot be read: Permission denied',
    ]


def test_absent_store(tmp_path):
    with pytest.raises(DataError, match='no frame store here'):
        open_store(tmp_path / 'nothing')


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/self/status')
def test_memory_does_not_grow_with_the_frames(tmp_path, run_python):
    """150 MB of frames through a process whose memory grows by far less."""
    terminals = np.zeros(12_000, bool)
    terminals[-1] = True
    np.savez_compressed(
        tmp_path / 'd.npz',
        observations=np.ones((12_000, 64, 64, 3), np.uint8),
        actions=np.zeros((12_000, 4), np.float32),
        terminals=terminals,
    )
    code = (
        'import re, sys\n'
        'from pathlib import Path\n'
        'from data_pipeline.sources.ogbench import npz_splits\n'
        'from data_pipeline.store.writer import write_store\n'
        'status = Path("/proc/self/status")\n'
        'peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])\n'
        'before = peak()\n'
        'write_store(Path(sys.argv[1]), "d", npz_splits(Path(sys.argv[2])))\n'
        'print(peak() - before)\n'
    )
    result = run_python(code, tmp_path / 'store', tmp_path / 'd.npz')
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 60_000  # KiB


def test_real_store_has_the_bytes_of_its_source(tmp_path, real_source):
    store = write_store(tmp_path / 'real', 'visual-cube-single-play-v0', npz_splits(real_source))
    assert store.splits.keys() == {'train', 'val'}
    with np.load(real_source, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(store.splits['train'].observations, arrays['observations'])
        np.testing.assert_array_equal(store.splits['train'].actions, arrays['actions'])
        ends = np.flatnonzero(arrays['terminals'])
    assert store.manifest.splits['train'].trajectories == len(ends)


def test_members_may_be_in_any_order(source, target, make_arrays):
    arrays = make_arrays()
    for save in (np.savez, np.savez_compressed):
        for order in (sorted(arrays), sorted(arrays, reverse=True)):
            save(source, **{name: arrays[name] for name in order})
            store = write_store(target, 'tiny-v0', npz_splits(source), overwrite=True)
            for name, array in store.splits['train'].arrays.items():
                np.testing.assert_array_equal(array, arrays[name])


def test_checksums_are_those_of_the_bytes(source, target, make_arrays):
    np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays((3, 3), seed=1))
    store = write_store(target, 'tiny-v0', npz_splits(source))
    for name, array in make_arrays().items():
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        assert store.manifest.splits['train'].arrays[name].sha256 == digest
    calls: list[tuple[int, int]] = []
    verify(store.path, store.stored_arrays, lambda *call: calls.append(call))
    total = sum(a.nbytes for split in store.splits.values() for a in split.arrays.values())
    assert calls[-1] == (total, total)


@pytest.mark.parametrize('file', ['train/qvel.npy', 'val/observations.npy'])
def test_verify_finds_a_changed_byte(source, target, make_arrays, file):
    np.savez(source.with_name('tiny-v0-val.npz'), **make_arrays((3, 3), seed=1))
    store = write_store(target, 'tiny-v0', npz_splits(source))
    data = bytearray((target / file).read_bytes())
    data[-1] ^= 1
    (target / file).write_bytes(data)
    with pytest.raises(DataError, match=rf'{file} is not what was written'):
        read_all(store)


@pytest.mark.parametrize(
    'place',
    ['run/config.json', 'train/run', 'train/observations (conflicted copy).npy', 'notes.txt'],
)
def test_what_is_not_of_the_store_is_not_deleted_with_it(source, target, place):
    write_store(target, 'tiny-v0', npz_splits(source))
    mine = target / place
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text('mine')
    named = re.escape(place.removesuffix('/config.json'))
    with pytest.raises(DataError, match=f'holds {named}, which --overwrite would'):
        write_store(target, 'tiny-v0', npz_splits(source), overwrite=True)
    assert mine.read_text() == 'mine'
