"""The arguments of `fql benchmark scaling`."""

from dataclasses import dataclass
from pathlib import Path

from fql.agents.configs import EncoderName
from fql.reports.tables import check_new
from scripts.shared_args import DataDir, check_positive


@dataclass(frozen=True)
class BenchmarkScaling:
    """Time an update against batch size, image size, frame stack, encoder and devices.

    On CPUs there are 8 virtual devices, which share the cores: what to look at is their work, which
    should be an eighth each.
    """

    out: Path = Path('runs/benchmark-scaling')
    """Folder that gets scaling.json and scaling.png, which must not exist."""
    encoder: EncoderName = 'impala_small'
    """Size of the encoder, where that is not varied."""
    rounds: int = 5
    """How often the values take turns; medians are reported."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_positive(rounds=self.rounds)
        for name in ('scaling.json', 'scaling.png'):
            check_new(self.out / name)
