"""Checkpoints of processes that are killed, or cannot write, at chosen moments."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fql.runs.checkpoint_files import find_damage
from fql.runs.checkpoints import CheckpointReader, CheckpointWriter
from fql.runs.run_folder import finished_steps

ROOT = Path(__file__).resolve().parents[3]
SAVING = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from fql.learner import TrainState
from fql.runs.checkpoints import CheckpointWriter

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
keys = jax.random.split(jax.random.key(0), 8)
params = {str(i): jax.random.normal(key, (300, 300)) for i, key in enumerate(keys)}
empty = {'target_params': {}, 'opt_state': {}, 'key': jax.random.key(0)}
with CheckpointWriter(folder, keep_latest=3) as writer:
    for step in range(1, 1_000_000):
        if step == 2 and limit:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        writer.save(TrainState(step=jnp.asarray(step), params=params, **empty), {})
        writer.wait()
        print(step, flush=True)
"""


def start_saving(folder, limit=0, **variables):
    return subprocess.Popen(
        [sys.executable, '-c', SAVING, str(folder), str(limit)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize('name', ['commit_success.txt', 'checksums.json', 'params'])
def test_a_kill_before_the_checkpoint_is_in_its_place_leaves_sound_ones(tmp_path, name):
    """After Orbax's commit and before ours; with all files written; while Orbax writes."""
    process = start_saving(tmp_path)
    try:
        assert process.stdout.readline() == '1\n'
        assert process.stdout.readline() == '2\n'
        deadline = time.monotonic() + 60
        while not any((path / name).exists() for path in tmp_path.glob('.unfinished-*')):
            assert time.monotonic() < deadline
    finally:
        process.kill()
        process.communicate()
    steps = finished_steps(tmp_path)
    assert steps
    assert [find_damage(tmp_path / str(step)) for step in steps] == [None] * len(steps)
    assert CheckpointReader(tmp_path).find(None) == steps[-1]
    with CheckpointWriter(tmp_path, keep_latest=3):
        assert not list(tmp_path.glob('.*'))


def fault_of(errors):
    """The line of the exception; Orbax's abandoned reads may print more behind it."""
    return next(line for line in errors.splitlines() if 'SaveError: ' in line)


@pytest.mark.parametrize(
    'limit',
    [1_000, *(pytest.param(limit, marks=pytest.mark.long) for limit in (100, 20_000, 100_000))],
)
def test_a_file_that_cannot_be_written_is_named_and_the_process_ends(tmp_path, limit):
    process = start_saving(tmp_path, limit)
    # If threads wait for one another, it takes five minutes.
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    last = fault_of(errors)
    assert last.startswith('fql.runs.checkpoints.SaveError: cannot save')
    assert 'File too large' in last
    assert str(tmp_path) in last
    assert CheckpointReader(tmp_path).find(None) == 1


# Fails like a quota or a broken disk, which a test cannot set up.
FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int fails(const char *call, int fd) {
  char link[64], path[4096];
  const char *calls = getenv("FAIL_CALLS"), *flag = getenv("FAIL_FLAG");
  if (!calls || !strstr(calls, call) || access(flag, F_OK)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  if (!strstr(path, "/.unfinished-")) return 0;
  errno = atoi(getenv("FAIL_ERRNO"));
  return 1;
}
#define FAILING(name, call, type, parameters, arguments) \
  type name parameters { \
    static type (*real) parameters; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    return fails(call, fd) ? -1 : real arguments; \
  }
FAILING(write, "write", ssize_t, (int fd, const void *data, size_t size), (fd, data, size))
FAILING(pwrite, "write", ssize_t, (int fd, const void *data, size_t size, off_t at),
        (fd, data, size, at))
FAILING(pwrite64, "write", ssize_t, (int fd, const void *data, size_t size, off_t at),
        (fd, data, size, at))
FAILING(fsync, "fsync", int, (int fd), (fd))
"""


@pytest.mark.long
@pytest.mark.skipif(shutil.which('gcc') is None, reason='no compiler')
@pytest.mark.parametrize(('calls', 'code'), [('write', errno.EDQUOT), ('fsync', errno.EIO)])
def test_a_quota_and_a_broken_disk_are_reported_and_the_process_ends(tmp_path, calls, code):
    library, flag, folder = (tmp_path / name for name in ('failing.so', 'flag', 'checkpoints'))
    compiler = ['gcc', '-shared', '-fPIC', '-x', 'c', '-', '-o', str(library), '-ldl']
    subprocess.run(compiler, input=FAILING, text=True, check=True)
    process = start_saving(
        folder,
        LD_PRELOAD=str(library),
        FAIL_CALLS=calls,
        FAIL_ERRNO=str(code),
        FAIL_FLAG=str(flag),
    )
    assert process.stdout.readline() == '1\n'
    flag.touch()
    _, errors = process.communicate(timeout=100)  # Waiting threads take five minutes.
    assert process.returncode == 1
    assert fault_of(errors).startswith('fql.runs.checkpoints.SaveError: cannot save')
    assert os.strerror(code) in fault_of(errors)
    steps = finished_steps(folder)
    assert CheckpointReader(folder).find(None) == steps[-1]


def test_a_disk_without_room_for_more_files(tmp_path):
    """The number of free files is what is left over after the first save."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=60m,nr_inodes=60', 'tmpfs', str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip('a small file system cannot be mounted')
    try:
        process = start_saving(disk / 'checkpoints')
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        last = fault_of(errors)
        assert 'SaveError: cannot save' in last
        assert 'No space left on device' in last
        assert str(disk) in last
        steps = finished_steps(disk / 'checkpoints')
        assert CheckpointReader(disk / 'checkpoints').find(None) == steps[-1]
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)
