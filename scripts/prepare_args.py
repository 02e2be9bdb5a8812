"""The arguments of `fql prepare`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fql.errors import FQLError
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Prepare:
    """Turn a dataset into a frame store.

    fql prepare visual-cube-single-play-v0
    fql prepare visual-cube-single-play-v0 --source visual-cube-single-play-v0.npz
    fql prepare my-robot --tfds ~/tensorflow_datasets/my_robot/1.0.0
        --observation-key observation/image

    Without --source or --tfds, OGBench's file of that name is downloaded to DIR/downloads; a
    download that was interrupted is continued.
    """

    dataset: tyro.conf.Positional[str]
    """Name to give the dataset; OGBench's name, for OGBench's data."""
    source: Path | None = None
    """An .npz file in OGBench's format; the -val.npz beside it becomes the validation split. With
    rewards and masks (0: no value beyond this transition) in it, there is a task own; with timeouts
    beside terminals, these are D4RL's, and masks are 1 - terminals."""
    tfds: str | None = None
    """An RLDS dataset: a folder that TFDS has written, or name[/config] of a dataset that TFDS
    knows. Its actions have to be within [-1, 1]."""
    observation_key: str = 'observation'
    """Where an RLDS step holds images (uint8) or vectors, such as observation/image."""
    action_key: str = 'action'
    """Where an RLDS step holds the action."""
    reward_key: str = ''
    """Where an RLDS step holds its reward, for fql train --task own."""
    data_dir: DataDir = ''
    overwrite: bool = False
    """Replace a store of this name that was made from another source."""

    def check(self) -> None:
        """Raises FQLError if the arguments make no sense."""
        if self.source is not None and self.tfds is not None:
            raise FQLError('--source and --tfds exclude each other')
        for name in ('observation_key', 'action_key', 'reward_key'):
            if self.tfds is None and getattr(self, name) != getattr(Prepare, name):
                flag = f'--{name.replace("_", "-")}'
                raise FQLError(f'{flag} is for RLDS datasets; name one with --tfds')
