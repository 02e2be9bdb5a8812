"""`.npy` files as tensors: memory-mapped, never copied, and read ahead where they fit in memory."""

import mmap
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from data_pipeline.files import load_array
from data_pipeline.machine import available_memory
from data_pipeline.store.frame_store import ALIGNMENT

tf.config.set_visible_devices([], 'GPU')  # Leaves GPU memory to JAX.

# In one call, Linux reads no more than the device's read-ahead size, by default 128 KB, and drops
# the rest silently.
_READ_AHEAD_BYTES = 128 << 10

_CACHED_SHARE = 0.8
"""Of the memory that is available, what files may take that are read ahead."""

# Without it, a private mapping larger than memory is refused. Python names it from 3.13 on.
_MAP_NORESERVE = getattr(mmap, 'MAP_NORESERVE', 0x4000 if sys.platform == 'linux' else 0)


def as_tensor(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor: memory-mapped if it is the whole of a `.npy` file, else copied."""
    if isinstance(array, np.memmap) and array.filename is not None:
        path = Path(array.filename)
        if load_array(path, mapped=True).shape == array.shape:
            read_ahead([path])
            return tf.reshape(map_file(path), array.shape)
    return tf.constant(array)


def map_file(path: Path, *, growing: bool = False) -> tf.Tensor:
    """A `.npy` file as a tensor (n, values per row), without reading or copying it.

    The tensor keeps the array and its mapping alive. DLPack takes only writable arrays, so that the
    mapping is a private one, which can never change the file.

    By default the system would read ahead around every page on its first use, up to 8 MB on some
    disks: gigabytes for one batch of random rows. It is advised to read single pages instead;
    `read_ahead` reads whole files.

    Args:
        growing: whether this process continues to write the file, as for a replay. Then the mapping
            is a shared one, in which new rows are visible.
    """
    layout = load_array(path, mapped=True)
    flags = mmap.MAP_SHARED if growing else mmap.MAP_PRIVATE | _MAP_NORESERVE
    with open(path, 'r+b' if growing else 'rb') as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    if hasattr(mmap, 'MADV_RANDOM'):
        mapping.madvise(mmap.MADV_RANDOM)
    values = np.frombuffer(mapping, layout.dtype, offset=len(mapping) - layout.nbytes)
    assert values.ctypes.data % ALIGNMENT == 0  # TensorFlow does not check, and aborts.
    return tf.experimental.dlpack.from_dlpack(values.reshape(len(layout), -1).__dlpack__())


def read_ahead(paths: Sequence[Path]) -> None:
    """Make the system read files into its cache, in the background, if all of them fit there."""
    size = sum(path.stat().st_size for path in paths)
    if hasattr(os, 'posix_fadvise') and size <= _CACHED_SHARE * (available_memory() or 0):
        threading.Thread(target=_advise, args=(paths,), daemon=True).start()


def _advise(paths: Sequence[Path]) -> None:
    for path in paths:
        with open(path, 'rb') as file:
            for start in range(0, path.stat().st_size, _READ_AHEAD_BYTES):
                os.posix_fadvise(file.fileno(), start, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
