"""The arguments of `fql compare`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.errors import FQLError
from fql.reports.tables import check_new_picture
from fql.training.run_folder import RunFolder


@dataclass(frozen=True)
class Compare:
    """Draw the success of several runs, and print a table.

    fql compare runs/scratch-0 runs/scratch-1 runs/frozen-0 runs/frozen-1 --out curves.png

    Folders whose names differ only in a number at the end are one group: its mean is drawn, and
    thin, its runs.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of fql train."""
    out: Path = Path('comparison.png')
    """The picture to write; must not exist."""

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        if not self.runs:
            raise FQLError('name run folders to compare')
        check_new_picture(self.out)
        for run in self.runs:
            if not RunFolder(run).eval_csv.exists():
                raise FQLError(f'{run}: no run folder with evaluations')
