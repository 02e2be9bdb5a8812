"""The arguments of `fql quickstart`."""

from dataclasses import dataclass
from pathlib import Path

from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Quickstart:
    """Collect a small pixel task, train FQL on it and compare it with cloning and chance.

    Takes some minutes on two processor cores. A second call reuses the collected data.
    """

    data_dir: DataDir = ''
    run_dir: Path | None = None
    """Folder that the run writes into. Default: runs/quickstart, or the next free number."""
    seed: int = 0
    """Seed of the training run."""
