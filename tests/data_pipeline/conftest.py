"""Small OGBench-like files, and the real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_SOURCE = ROOT.parent / 'shared' / 'data' / 'visual-cube-single-play-v0.npz'

Arrays = dict[str, np.ndarray]


@pytest.fixture
def make_arrays() -> Callable[..., Arrays]:
    """make_arrays(lengths, shape, ...): trajectories of these numbers of rows, random contents."""

    def make(
        lengths: tuple[int, ...] = (2, 3, 7, 2),
        shape: tuple[int, ...] = (8, 8, 3),
        seed: int = 0,
        dtype: Any = np.uint8,
    ) -> Arrays:
        rng = np.random.default_rng(seed)
        rows = sum(lengths)
        if dtype == np.uint8:
            observations = rng.integers(0, 256, (rows, *shape), dtype)
        else:
            observations = rng.normal(size=(rows, *shape)).astype(dtype)
        terminals = np.zeros(rows, bool)
        terminals[np.cumsum(lengths) - 1] = True
        return {
            'observations': observations,
            'actions': rng.uniform(-1, 1, (rows, 4)).astype(np.float32),
            'terminals': terminals,
            'qpos': rng.normal(size=(rows, 5)).astype(np.float32),
            'qvel': rng.normal(size=(rows, 6)).astype(np.float32),
        }

    return make


@pytest.fixture
def real_source() -> Path:
    """The real dataset file beside the repository."""
    if not REAL_SOURCE.exists():
        pytest.skip(f'{REAL_SOURCE} is absent: the real dataset is not part of the repository')
    return REAL_SOURCE
