"""The arguments of `fql probe`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from encoders.description import read_encoder
from fql.settings.dataset_paths import dataset_path
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Probe:
    """Print how well a linear map reads positions off latents.

    fql probe runs/cube-encoder/encoder

    For every column of qpos, which holds the positions of robot and objects, R^2 on the validation
    split of a ridge regression fitted to the training split: from the saved encoder's latents, from
    those of a random one of the same size, and from the images' pixels, averaged to at most 16x16.
    """

    encoder: tyro.conf.Positional[Path]
    """Folder of a saved encoder."""
    dataset: str | None = None
    """Name of a prepared dataset; default: the one that the encoder was trained on."""
    target: tuple[int, ...] = ()
    """Columns of qpos; default: all."""
    rows: int = 20_000
    """Rows of each split that are used at most, evenly spaced."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise EncoderError or DataError if the arguments make no sense."""
        saved = read_encoder(self.encoder)
        dataset_path(self.dataset or saved.dataset, self.data_dir)
