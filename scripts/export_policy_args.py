"""The arguments of `fql export-policy`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.output import check_new
from fql.runs.run_folder import RunFolder, steps_to_read
from fql.runs.run_spec import read_spec


@dataclass(frozen=True)
class ExportPolicy:
    """Write the policies of a run as a folder for programs.

    fql export-policy runs/cube --out policies/cube

    The folder holds parameters, settings, a model card, and for each policy a program that runs
    without this package (pip install jax flatbuffers). In Python: fql.load_policy('policies/cube').
    """

    run: tyro.conf.Positional[Path]
    """Run folder of fql train."""
    out: Path
    """The folder to write; must not exist."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.out)
        folder = RunFolder(self.run)
        read_spec(folder)
        steps_to_read(folder.checkpoints, self.step)
