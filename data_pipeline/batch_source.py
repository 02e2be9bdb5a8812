"""The rows of a split as tensors, which batches are gathered from."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data_pipeline.mapped_files import as_tensor, map_file, read_ahead
from data_pipeline.observations import array_name, named, unnamed
from data_pipeline.store.frame_store import Split


class Inputs(NamedTuple):
    """Frames or latents, in one array: a file as a tensor (n, values per row); a row's shape."""

    values: tf.Tensor
    shape: tuple[int, ...]


def map_inputs(split: Split) -> Any:
    """The memory-mapped frames or latents of a split: `Inputs`, or several by name."""
    arrays = named(split.observations)
    paths = {name: split.path / f'{array_name(name)}.npy' for name in arrays}
    read_ahead(list(paths.values()))
    return unnamed(
        {name: Inputs(map_file(path), arrays[name].shape[1:]) for name, path in paths.items()}
    )


class Columns(NamedTuple):
    """The other columns of a split besides observations: (n, a), (n,) and (n,) float32.

    Attributes:
        reward_offset: added to the rewards of a batch.
    """

    actions: tf.Tensor
    rewards: tf.Tensor
    masks: tf.Tensor
    reward_offset: float = 0.0


class Source(NamedTuple):
    """Rows that batches are gathered from; for `inputs` see `map_inputs`."""

    inputs: Any
    columns: Columns


def split_source(split: Split, rewards: np.ndarray, masks: np.ndarray) -> Source:
    """The rows of a split and their labels as tensors."""
    columns = Columns(
        as_tensor(split.actions),
        tf.constant(rewards, tf.float32),
        tf.constant(masks, tf.float32),
    )
    return Source(map_inputs(split), columns)
