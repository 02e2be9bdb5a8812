"""The arguments of `fql export-tfds`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from data_pipeline.replay_store import is_replay
from fql.settings.dataset_paths import dataset_path
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class ExportTfds:
    """Write a frame store as an RLDS dataset, which TFDS reads.

    fql export-tfds visual-cube-single-play-v0 --out ~/tensorflow_datasets

    Then, in Python, without this program:

    tfds.data_source('ogbench/visual-cube-single-play-v0')

    Rewards are 0 and discounts 1, as the data have no goal, except where the dataset has its own
    rewards. Actions are in the data's own units, also if --normalize-actions has scaled them. Where
    an observation is several arrays, a step's observation is a dictionary of them.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the prepared dataset; or the folder of a run's replay, RUN/replay."""
    out: Path
    """TFDS's data folder; the dataset goes to OUT/ogbench/DATASET/1.0.0; a replay, to
    OUT/ogbench/RUN-replay/1.0.0."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise DataError if there is no such dataset."""
        if not is_replay(Path(self.dataset)):
            dataset_path(self.dataset, self.data_dir)
