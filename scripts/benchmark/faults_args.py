"""The arguments of `fql benchmark faults`."""

from dataclasses import dataclass
from pathlib import Path

from fql.errors import FQLError
from scripts.shared_args import DataDir, check_positive


@dataclass(frozen=True)
class BenchmarkFaults:
    """Kill a run again and again and see that it ends in the same state as one left alone.

    Small networks on a prepared dataset; evaluation is off. Then the time that saving takes from
    training is measured with the paper's networks.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    kills: int = 30
    """How often the run is killed (SIGKILL), at random moments."""
    updates: int = 6_000
    """Updates of the run."""
    seed: int = 0
    """Of the moments."""
    folder: Path = Path('runs/benchmark-faults')
    """Where the runs are made; must not exist."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        if self.folder.exists():
            raise FQLError(f'{self.folder} exists; delete it or name another --folder')
        check_positive(kills=self.kills, updates=self.updates)
