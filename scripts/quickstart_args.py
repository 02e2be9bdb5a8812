"""The arguments of `fql quickstart`."""

from dataclasses import dataclass
from pathlib import Path

from fql.errors import FQLError
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Quickstart:
    """Try it: collect a small task, train on it, compare the policy.

    The task has pixel observations; the policy is compared with behaviour cloning and with chance.
    It takes some minutes on two processor cores. A second call reuses the collected data.
    """

    data_dir: DataDir = ''
    run_dir: Path | None = None
    """Folder that the run writes into. Default: runs/quickstart, or the next free number."""
    seed: int = 0
    """Seed of the training run."""

    def check(self) -> None:
        """Raise FQLError if the folder is in use, before the data are collected."""
        run = self.run_dir
        if run is not None and run.exists() and (run.is_file() or any(run.iterdir())):
            raise FQLError(f'{run} exists; name another --run-dir')
