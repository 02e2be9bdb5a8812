"""The arguments of `fql prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fql.errors import FQLError
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Prepare:
    """Turn a dataset into a frame store.

    fql prepare visual-cube-single-play-v0
    fql prepare visual-cube-single-play-v0 --source visual-cube-single-play-v0.npz
    fql prepare antmaze-umaze-v2 --source Ant_maze_u-maze_fixed.hdf5
    fql prepare my-robot --source demos.hdf5 --observation-key agentview_image
    fql prepare my-robot --source demos.hdf5 --observation-key agentview_image
        --observation-key robot0_eye_in_hand_image --observation-key robot0_eef_pos
    fql prepare my-robot --tfds ~/tensorflow_datasets/my_robot/1.0.0
        --observation-key observation/image

    Without --source, --tfds or --minari, OGBench's file of that name is downloaded to
    DIR/downloads; a download that was interrupted is continued. Data that fql collect has made
    under that name are not replaced by a download: name their file with --source.
    """

    dataset: tyro.conf.Positional[str] = ''
    """Name of the dataset; for OGBench's and D4RL's data their name of it. Default: the file's name
    without its ending."""
    source: Path | None = None
    """An .npz file in OGBench's format, an HDF5 file of D4RL, robomimic or Minari, the folder of a
    LeRobot dataset, or of a run's replay, RUN/replay. NAME-val.npz beside NAME.npz becomes the
    validation split. A file with rewards and masks (0 where the task is complete, else 1) can be
    trained on as --task own. A file with timeouts and terminals is read as D4RL's: masks are
    1 - terminals."""
    tfds: str | None = None
    """An RLDS dataset: a folder that TFDS has written, or name[/config] of a dataset that TFDS
    knows. Its actions have to be within [-1, 1]."""
    minari: str | None = None
    """A dataset by the name that Minari gives it, such as D4RL/door/human-v2; needs the extra
    `minari`."""
    observation_key: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='[NAME=]KEY')
    ] = ()
    """Which images (uint8) or vectors to take: an array of an .npz or HDF5 file; a part of obs/ in
    a robomimic file, or of observations/ in a Minari file; a feature of a LeRobot dataset; the
    place in an RLDS step, such as observation/image (default: observation). If it is given several
    times, an observation is all of these arrays by NAME; without NAME, by the part of KEY after
    the last slash. The environment's Dict has the same names."""
    action_key: str = 'action'
    """Where an RLDS step holds the action."""
    reward_key: str = ''
    """Where an RLDS step holds its reward, for fql train --task own."""
    normalize_actions: bool = False
    """Scale each dimension of the actions from its range in the data to [-1, 1]. A policy's actions
    are scaled back."""
    data_dir: DataDir = ''
    overwrite: bool = False
    """Replace a store of this name that was made from another source."""

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.dataset or (self.source.stem if self.source else '')

    @property
    def sources(self) -> list[str]:
        """The flags of the sources that are given."""
        given = {'--source': self.source, '--tfds': self.tfds, '--minari': self.minari}
        return [flag for flag, value in given.items() if value is not None]

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if len(self.sources) > 1:
            raise FQLError(f'give only one of {" and ".join(self.sources)}')
        if self.source is not None and not self.source.name:  # '', which is read as '.', or '/'.
            raise FQLError(f'--source must name a file, not {self.source}')
        if str(self.source).startswith(('http:/', 'https:/', 'file:/')):
            raise FQLError(
                '--source must name a file on this machine, not a URL; download it first'
            )
        if self.tfds == '':  # It would be read as '.'.
            raise FQLError('--tfds must name a dataset or its folder')
        if not self.name:
            raise FQLError('name the dataset: fql prepare NAME')
        if self.observation_key and not (self.source or self.tfds or self.minari):
            raise FQLError('--observation-key needs --source, --tfds or --minari')
        for name in ('action_key', 'reward_key'):
            if self.tfds is None and getattr(self, name) != getattr(Prepare, name):
                flag = f'--{name.replace("_", "-")}'
                raise FQLError(f'{flag} is for RLDS datasets; name one with --tfds')
