"""The arguments of `fql benchmark latents`."""

from dataclasses import dataclass

from fql.reports.tables import check_new
from scripts.shared_args import DataDir, JsonOut, check_positive


@dataclass(frozen=True)
class BenchmarkLatents:
    """Time the caching of a frozen encoder's latents against the encoder alone, in turns.

    The encoder is a fresh one. Alone, it encodes one batch again and again, which lies on the
    devices; to cache, frames are read, put on the devices and encoded, and latents are checked and
    written, to the folder for temporary files. Both have compiled before.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared; its batch size, frame stack and encoder are taken."""
    rows: int = 20_000
    """Rows of a turn: the dataset's first trajectories that have no more."""
    latent_copies: int = 0
    """As for fql train."""
    rounds: int = 5
    """How often the two take turns; medians are reported."""
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_new(self.json)
        check_positive(rows=self.rows, rounds=self.rounds)
