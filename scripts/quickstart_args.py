"""The arguments of `fql quickstart`."""

from dataclasses import dataclass
from pathlib import Path

from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Quickstart:
    """Try it: collect a small task, train on it, compare the policy.

    The task is one of pixels; the policy is compared with behaviour cloning and with chance. Takes
    some minutes on two processor cores. A second call reuses the collected data.
    """

    data_dir: DataDir = ''
    run_dir: Path | None = None
    """Folder that the run writes into. Default: runs/quickstart, or the next free number."""
    seed: int = 0
    """Seed of the training run."""
