"""The arguments of `fql inspect data`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.reports.tables import check_new_picture
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class InspectData:
    """Print what a frame store holds, and the rewards of its tasks.

    fql inspect data visual-cube-single-play-v0 --verify --png cube.png

    Rewards are those of all tasks of a known dataset, and of every other task of which a run has
    used it.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the prepared dataset."""
    verify: bool = False
    """Read every array and compare it with the checksum of when it was prepared."""
    png: Path | None = None
    """Where to draw some frames; NAME-histograms.png beside it gets lengths and actions. Existing
    files are not overwritten."""
    data_dir: DataDir = ''

    @property
    def histograms(self) -> Path | None:
        """The file beside `png` for the second page."""
        return self.png and self.png.with_name(f'{self.png.stem}-histograms{self.png.suffix}')

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        check_new_picture(self.png)
        check_new_picture(self.histograms)
