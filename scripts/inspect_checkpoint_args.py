"""The arguments of `fql inspect checkpoint`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from scripts.shared_args import DataDir


@dataclass(frozen=True)
class InspectCheckpoint:
    """Print a checkpoint's step, parameter count and digest as JSON.

    The digest is SHA-256 over path, dtype, shape and bytes of every leaf of the training state:
    two runs whose digests agree are in the same state, bit for bit.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    data_dir: DataDir = ''
