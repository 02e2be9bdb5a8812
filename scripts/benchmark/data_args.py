"""The arguments of `fql benchmark data`."""

from dataclasses import dataclass

from fql.reports.tables import check_new
from scripts.shared_args import DataDir, JsonOut, check_positive


@dataclass(frozen=True)
class BenchmarkData:
    """Time the loader against the reference implementation's way of sampling, in one process.

    The loader works on all cores; what is compared is the time until the host has a batch. Also:
    memory and start-up time with a sparse store of a million frames (a file of 12.3 GB that takes
    hardly any disk); the dataset's own frames prepared and exported anew; how long training waits
    for data. What is written is removed from the data folder again. Takes some minutes.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    rounds: int = 20
    """How often the ways take turns; medians are reported."""
    batches: int = 10_000
    """Batches drawn from the sparse store while memory is watched."""
    updates: int = 20
    """Updates (impala_small, batch 256) timed for the share of waiting."""
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_new(self.json)
        check_positive(rounds=self.rounds, batches=self.batches, updates=self.updates)
