"""Checkpoints of processes that are killed, or cannot write, at aimed moments."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fql.training.checkpoints import CheckpointReader, CheckpointWriter, find_damage, finished_steps

ROOT = Path(__file__).resolve().parents[3]
SAVING = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from fql.learner import TrainState
from fql.training.checkpoints import CheckpointWriter

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


def start_saving(folder, limit=0):
    return subprocess.Popen(
        [sys.executable, '-c', SAVING, str(folder), str(limit)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize('name', ['commit_success.txt', 'checksums.json', 'params'])
def test_a_kill_before_the_checkpoint_is_in_its_place_leaves_sound_ones(tmp_path, name):
    """With Orbax's commit made and ours not; with all files there; within Orbax's writing."""
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


@pytest.mark.parametrize('limit', [100, 1_000, 20_000, 100_000])
def test_a_file_that_cannot_be_written_is_named_and_the_process_ends(tmp_path, limit):
    process = start_saving(tmp_path, limit)
    # Where threads wait for one another, it takes five minutes.
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    last = fault_of(errors)
    assert last.startswith('fql.training.checkpoints.SaveError: cannot save')
    assert 'File too large' in last
    assert str(tmp_path) in last
    assert CheckpointReader(tmp_path).find(None) == 1


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
