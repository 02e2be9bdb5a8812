"""Atomic writes of files and folders."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.files import (
    LockedError,
    atomic_folder,
    is_temporary,
    locked,
    make_folder,
    replacing,
    write_json,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    """The names in a folder, except locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


def replace(target: Path, text: str) -> None:
    with atomic_folder(target, replace=True) as folder:
        (folder / 'x').write_text(text)


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    events, rename = [], os.replace
    monkeypatch.setattr(os, 'fsync', lambda file: events.append(os.fstat(file).st_ino))
    monkeypatch.setattr(os, 'replace', lambda *paths: events.append('replace') or rename(*paths))
    (tmp_path / 'parts').mkdir()
    with replacing(tmp_path / 'file', tmp_path / 'parts') as temporary:
        temporary.write_bytes(b'x')
        assert temporary.parent == tmp_path / 'parts'
    assert events == [(tmp_path / 'file').stat().st_ino, 'replace', tmp_path.stat().st_ino]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / 'file'
    write_text(path, 'old')

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text('half')
            assert is_temporary(temporary)
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == 'old'
    write_json(path, {'a': 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert names(tmp_path) == ['file']
    assert not is_temporary(path)


def test_atomic_folder_does_not_replace_unasked(tmp_path):
    target = tmp_path / 'deep' / 'a'
    with atomic_folder(target) as folder:
        (folder / 'x').write_text('first')
    with pytest.raises(FileExistsError), atomic_folder(target):
        pass
    assert (target / 'x').read_text() == 'first'
    with atomic_folder(target, replace=True) as folder:
        (folder / 'x').write_text('third')
        assert (target / 'x').read_text() == 'first'
    assert (target / 'x').read_text() == 'third'
    assert names(target.parent) == ['a']


def test_a_folder_whose_block_raises_vanishes(tmp_path):
    target = tmp_path / 'a'
    replace(target, 'old')

    def write_half() -> None:
        with atomic_folder(target, replace=True) as folder:
            (folder / 'x').write_text('half')
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert (target / 'x').read_text() == 'old'
    assert names(tmp_path) == ['a']


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    target, rename = tmp_path / 'a', os.rename
    replace(target, 'old')

    def fail_for_the_new(source, destination):
        if Path(source).name == '.a.incomplete':
            raise OSError('no')
        rename(source, destination)

    monkeypatch.setattr(os, 'rename', fail_for_the_new)
    with pytest.raises(OSError, match='no'):
        replace(target, 'new')
    assert (target / 'x').read_text() == 'old'
    assert names(tmp_path) == ['a']


@pytest.mark.parametrize('kind', ['file', 'link to nothing'])
def test_what_is_no_folder_is_not_taken_for_one(tmp_path, kind):
    odd = tmp_path / 'odd'
    if kind == 'file':
        odd.touch()
    else:
        odd.symlink_to(tmp_path / 'unmounted')
    for target in (odd, odd / 'a', odd / 'a' / 'b'):
        with pytest.raises(NotADirectoryError, match='odd'):
            make_folder(target)
    with pytest.raises(NotADirectoryError), atomic_folder(odd / 'a' / 'b'):
        pass


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / 'disk').mkdir()
    target, link = tmp_path / 'disk' / 'a', tmp_path / 'link'
    replace(target, 'old')
    link.symlink_to(target)
    for text in ('new', 'newer'):
        replace(link, text)
        assert (target / 'x').read_text() == text
        assert link.is_symlink()
    assert names(tmp_path) == ['disk', 'link']
    assert names(tmp_path / 'disk') == ['a']


def test_a_link_to_nothing_is_no_place_for_a_folder(tmp_path):
    """For example a link to a disk that is not mounted."""
    (tmp_path / 'link').symlink_to(tmp_path / 'unmounted' / 'a')
    for is_replacing in (False, True):
        with (
            pytest.raises(FileNotFoundError),
            atomic_folder(tmp_path / 'link', replace=is_replacing),
        ):
            pass
    assert names(tmp_path) == ['link']


KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipeline import files

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

target, when = Path(sys.argv[1]), sys.argv[2]
with files.atomic_folder(target, replace=True) as folder:
    (folder / 'x').write_text('new')
    if when == 'writing':
        die()
    if when == 'between the renames':
        rename = os.rename
        os.rename = lambda *paths: die() if Path(paths[1]) == target else rename(*paths)
    if when == 'removing the old one':
        files.shutil.rmtree = die
"""


@pytest.mark.parametrize(
    ('when', 'stands'),
    [('writing', 'old'), ('between the renames', None), ('removing the old one', 'new')],
)
def test_what_killed_processes_have_left_is_put_right(tmp_path, run_python, when, stands):
    target = tmp_path / 'a'
    replace(target, 'old')
    (tmp_path / '.a-b.incomplete').mkdir()  # Of another target.
    assert run_python(KILLED, target, when).returncode == -signal.SIGKILL
    assert ((target / 'x').read_text() if target.exists() else None) == stands
    with pytest.raises(FileExistsError), atomic_folder(target):
        pass
    assert (target / 'x').read_text() == (stands or 'old')
    assert names(tmp_path) == ['.a-b.incomplete', 'a']


LEFTOVERS = {
    'file': lambda path: path.write_text('x'),
    'link': lambda path: path.symlink_to('kept'),
    'broken link': lambda path: path.symlink_to('nowhere'),
}


@pytest.mark.parametrize('kind', LEFTOVERS)
@pytest.mark.parametrize('ending', ['incomplete', 'replaced'])
def test_leftovers_that_are_no_folders_are_removed(tmp_path, kind, ending):
    replace(tmp_path / 'a', 'old')
    replace(tmp_path / 'kept', 'kept')
    LEFTOVERS[kind](tmp_path / f'.a.{ending}')
    replace(tmp_path / 'a', 'new')
    assert (tmp_path / 'a' / 'x').read_text() == 'new'
    assert (tmp_path / 'kept' / 'x').read_text() == 'kept'
    assert names(tmp_path) == ['a', 'kept']


HOLD = """
import sys
from pathlib import Path
from data_pipeline.files import locked
with locked(Path(sys.argv[1]), 'waits'):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path, capfd):
    path = tmp_path / 'lock'
    holder = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(path)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b'held\n'
    with (
        pytest.raises(LockedError, match='another process waits; wait for it') as caught,
        locked(path, 'waits'),
    ):
        pass
    assert caught.value.holder.startswith(f'process {holder.pid} on ')
    holder.kill()
    holder.communicate()
    with locked(path, 'waits', wait=True):
        assert path.read_text().startswith(f'process {os.getpid()} on ')
    assert 'waiting for it' not in capfd.readouterr().out


@pytest.mark.parametrize('writing', [replacing, atomic_folder])
def test_a_full_disk_is_reported_with_the_file(tmp_path, writing):
    """The system's error of a write names no file. /dev/full fails like a full disk."""

    def write():
        with writing(tmp_path / 'report.json'), open('/dev/full', 'wb', 0) as full:
            full.write(b'x')

    with pytest.raises(OSError, match=r"No space left on device: '.*report\.json'$"):
        write()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != '.lock'] == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    """What another process is writing stays, and so does what only looks alike."""
    path, odd = tmp_path / 'a.json', tmp_path / '.a.json.0123456x.tmp'
    for name in ('.a.json.01234567.tmp', '.b.json.01234567.tmp', odd.name):
        (tmp_path / name).write_text('half')
    with replacing(path) as live:
        live.write_text('whole')
        write_text(path, 'other')
        assert names(tmp_path) == sorted(
            [odd.name, live.name, '.b.json.01234567.tmp', 'a.json'],
        )
    assert path.read_text() == 'whole'
    assert names(tmp_path) == [odd.name, '.b.json.01234567.tmp', 'a.json']


def test_live_files_are_locked_where_shared_locks_need_reading(tmp_path, monkeypatch):
    """On NFS, flock fails where the file is not open for what the lock is for."""
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        needed = 'r' if operation & fcntl.LOCK_SH else '+'
        if needed not in file.mode and '+' not in file.mode:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, operation)

    monkeypatch.setattr(fcntl, 'flock', flock)
    path = tmp_path / 'a.json'
    with replacing(path) as live:
        live.write_text('whole')
        write_text(path, 'other')
    assert path.read_text() == 'whole'


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.mark.usefixtures('no_locks')
def test_where_no_locks_are_a_file_that_may_be_in_use_stays(tmp_path):
    write_text(tmp_path / 'a.json', 'old')
    with replacing(tmp_path / 'a.json') as live:
        live.write_text('new')
        write_text(tmp_path / 'a.json', 'other')
    assert (tmp_path / 'a.json').read_text() == 'new'


@pytest.mark.usefixtures('no_locks')
def test_a_file_system_without_locks_is_named(tmp_path):
    with pytest.raises(OSError, match=r'has no locks \(Function not impl.*/lock') as caught:
        locked(tmp_path / 'lock', 'works').__enter__()
    assert caught.value.errno == errno.ENOSYS


def test_what_was_left_and_cannot_be_removed_is_named(tmp_path, monkeypatch):
    replace(tmp_path / 'd', 'old')
    (tmp_path / '.d.replaced').mkdir()

    def rmtree(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, 'rmtree', rmtree)
    with pytest.raises(OSError, match=r'/\.d\.replaced, left there before, cannot be removed'):
        replace(tmp_path / 'd', 'new')
    assert (tmp_path / 'd' / 'x').read_text() == 'old'
