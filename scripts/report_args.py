"""The arguments of `fql report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.errors import FQLError
from fql.output import check_new


@dataclass(frozen=True)
class Report:
    """Compare runs, or all of a sweep, on one page; print a table.

    fql report runs/small --out small.html
    fql report runs/scratch-* runs/frozen-*

    Runs that differ only in their seed form a group. The page is one file, which opens without a
    network: results with intervals, learning curves, rollouts, the paper's numbers.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of fql train, and folders of fql sweep. Those without evaluations are listed at
    the end of the page."""
    out: Path = Path('report.html')
    """The page to write; must not exist, unless --overwrite is given."""
    overwrite: bool = False
    """Replace the page that is there."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if not self.runs:
            raise FQLError('name run folders, or the folder of a sweep')
        if self.out.suffix != '.html':
            raise FQLError(f'{self.out}: only .html pages are written')
        if not self.overwrite:
            check_new(self.out)
        for run in self.runs:
            if not run.exists():
                raise FQLError(f'{run} does not exist')
