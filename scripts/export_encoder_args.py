"""The arguments of `fql export-encoder`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.output import check_new
from fql.runs.run_folder import RunFolder, steps_to_read
from fql.runs.run_spec import read_spec


@dataclass(frozen=True)
class ExportEncoder:
    """Write the encoder of a run to a folder.

    fql export-encoder runs/cube --out encoders/cube

    The folder is for fql train --encoder.from. With --encoder.sharing separate it holds the
    critic's encoder. For a pretraining, it can hold the encoder of an earlier checkpoint.
    """

    run: tyro.conf.Positional[Path]
    """Run folder of fql train or fql pretrain."""
    out: Path
    """The folder to write; must not exist."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.out)
        folder = RunFolder(self.run)
        if not folder.pretrain_spec.exists():
            read_spec(folder)
        steps_to_read(folder.checkpoints, self.step)
