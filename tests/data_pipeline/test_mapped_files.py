"""What is mapped, copied and read ahead; `test_loader.py` has what batches need of it."""

import os

import numpy as np
import pytest

from data_pipeline import mapped_files
from data_pipeline.mapped_files import as_tensor, map_file
from data_pipeline.store.writer import write_array


@pytest.fixture
def advised(monkeypatch):
    """(start, size) of what the system is asked to read ahead, at once in place of in a thread."""
    asked = []
    monkeypatch.setattr(os, 'posix_fadvise', lambda *arguments: asked.append(arguments[1:3]))

    class Now:
        def __init__(self, target, args, daemon):
            assert daemon
            self.start = lambda: target(*args)

    monkeypatch.setattr(mapped_files.threading, 'Thread', Now)
    return asked


@pytest.mark.parametrize(('free', 'is_read'), [(None, False), (2400, False), (2600, True)])
def test_only_files_that_fit_together_are_read_ahead(tmp_path, monkeypatch, advised, free, is_read):
    paths = [tmp_path / name for name in ('front', 'wrist')]
    for path in paths:
        path.write_bytes(bytes(1000))
    monkeypatch.setattr(mapped_files, 'available_memory', lambda: free)
    mapped_files.read_ahead(paths)
    assert len(advised) == (2 if is_read else 0)


def test_reading_ahead_leaves_nothing_out(tmp_path, monkeypatch, advised):
    """In one call, Linux reads at most 128 KB on ordinary disks."""
    path = tmp_path / 'file'
    path.write_bytes(bytes(1_000_000))
    monkeypatch.setattr(mapped_files, 'available_memory', lambda: 10**9)
    mapped_files.read_ahead([path])
    starts, sizes = np.transpose(advised)
    assert sizes.max() <= 128 << 10
    np.testing.assert_array_equal(starts, np.cumsum([0, *sizes[:-1]]))
    assert starts[-1] + sizes[-1] >= 1_000_000


def test_arrays_that_are_whole_files_are_mapped_and_others_copied(tmp_path, monkeypatch):
    mapped = []
    monkeypatch.setattr(
        mapped_files, 'map_file', lambda path: mapped.append(path) or map_file(path)
    )
    actions = np.arange(20, dtype=np.float32).reshape(10, 2)
    write_array(tmp_path / 'actions.npy', actions)
    whole = np.load(tmp_path / 'actions.npy', mmap_mode='r')
    for array, files in ((whole, 1), (whole[2:], 0), (actions, 0)):
        mapped.clear()
        np.testing.assert_array_equal(as_tensor(array).numpy(), array)
        assert len(mapped) == files
