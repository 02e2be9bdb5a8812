"""Files and folders as sources of frame stores, by their format."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import h5py

from data_pipeline.errors import DataError
from data_pipeline.observations import NO_KEYS
from data_pipeline.source_split import SourceSplit
from data_pipeline.sources.hdf5 import d4rl_splits, open_hdf5
from data_pipeline.sources.minari import is_minari, minari_splits
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.sources.robomimic import robomimic_splits


def file_splits(
    source: Path, dataset: str, keys: Mapping[str, str] = NO_KEYS
) -> dict[str, SourceSplit]:
    """The splits of an `.npz` file, of D4RL's, robomimic's or Minari's HDF5, of a LeRobot folder.

    Args:
        source: the file or folder.
        dataset: the name that the dataset gets.
        keys: of `observation_keys`: which arrays are the observations; if empty, those that the
            layout names.

    Raises:
        DataError: the file cannot be read, or is not sound.
    """
    if (source / 'meta' / 'info.json').is_file():
        # Imported here, since only this source needs a Parquet reader and a video decoder.
        from data_pipeline.sources.lerobot import lerobot_splits

        return lerobot_splits(source, keys)
    if source.is_dir():
        raise DataError(
            f'{source}: a folder without meta/info.json, so not a LeRobot dataset; --tfds reads '
            'folders of RLDS'
        )
    try:
        is_hdf5 = h5py.is_hdf5(source)
    except PermissionError as error:  # Its message is that of the HDF5 library.
        raise DataError(f'{source}: cannot be read: {os.strerror(errno.EACCES)}') from error
    if not is_hdf5:
        return npz_splits(source, keys)
    with open_hdf5(source) as file:
        is_robomimic = isinstance(file.get('data'), h5py.Group)
        has_episodes = is_minari(file)
    if is_robomimic:
        return robomimic_splits(source, keys)
    if has_episodes:
        return minari_splits(source, keys)
    return d4rl_splits(source, dataset, keys)
