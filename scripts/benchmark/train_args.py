"""The arguments of `fql benchmark train`."""

from dataclasses import dataclass

from fql.errors import FQLError
from fql.reports.tables import check_new
from scripts.shared_args import DataDir, JsonOut, check_positive


@dataclass(frozen=True)
class BenchmarkTrain:
    """Time the training loop against bare updates on one batch, and how soon it starts.

    Logs, evaluations and checkpoints are off.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    updates: int = 20
    """Updates in a turn."""
    updates_per_call: int = 1
    """As for fql train."""
    rounds: int = 5
    """How often the two take turns; medians are reported."""
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_new(self.json)
        check_positive(
            updates=self.updates, updates_per_call=self.updates_per_call, rounds=self.rounds
        )
        if self.updates % self.updates_per_call:
            raise FQLError('updates must be a multiple of updates-per-call')
