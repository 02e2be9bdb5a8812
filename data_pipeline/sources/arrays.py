"""The arrays that a store accepts, by name, type and shape, and their conversion."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from data_pipeline.array_names import INFO_ARRAYS, LABEL_ARRAYS
from data_pipeline.errors import DataError
from data_pipeline.observations import is_observation
from data_pipeline.source_split import ArraySpec

TIMEOUT_ARRAYS = ('timeouts', 'truncations')
"""Arrays that mark the last row of an episode that a time limit ended."""

_SCALARS = ('terminals', *TIMEOUT_ARRAYS, *LABEL_ARRAYS)
_CHANNELS = (1, 3, 4)  # grey, colours, colours and transparency


@dataclass(frozen=True)
class Fitted:
    """How an array of a source becomes one of a store.

    Attributes:
        spec: row shape and type in the store.
        convert: block of rows to block of rows of the store's shape; `checked_blocks` casts the
            type.
        note: a line for the user on the conversion, or ''.
    """

    spec: ArraySpec
    convert: Callable[[np.ndarray], np.ndarray]
    note: str = ''


def fit_arrays(
    origin: str, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> dict[str, Fitted]:
    """How arrays, given by row shape and type, are stored; by name.

    Raises:
        DataError: an array is empty, or of a type or shape that its name does not allow.
    """
    return {name: _fit(origin, name, *array) for name, array in arrays.items()}


def _fit(origin: str, name: str, row_shape: tuple[int, ...], dtype: np.dtype) -> Fitted:
    rank = len(row_shape)
    found = f'{origin}: {name} is {dtype} of shape {row_shape} in a row'
    if math.prod(row_shape) == 0:
        raise DataError(f'{found}: empty')
    is_float = dtype.newbyteorder('=') in (np.float16, np.float32, np.float64)
    is_number = dtype.kind in 'biuf'
    if is_observation(name) and dtype == np.uint8 and rank in (2, 3):
        return _fit_images(found, name, row_shape)
    if (is_observation(name) or name == 'actions') and rank == 1 and is_float:
        return Fitted(ArraySpec(row_shape, np.dtype(np.float32)), _unchanged)
    if name in _SCALARS and row_shape in ((), (1,)) and is_number:
        kind = np.float32 if name in LABEL_ARRAYS else bool
        return Fitted(ArraySpec((), np.dtype(kind)), lambda block: block.reshape(len(block)))
    if name in INFO_ARRAYS and rank == 1 and is_number:
        return Fitted(ArraySpec(row_shape, dtype.newbyteorder('=')), _unchanged)
    wanted = 'numbers (d,)'
    if is_observation(name):
        wanted = 'uint8 images (h, w, c), (c, h, w) or (h, w), or float vectors (d,)'
    elif name == 'actions':
        wanted = 'float16, float32 or float64 (a,); discrete actions are not supported'
    elif name in _SCALARS:
        wanted = 'a number'
    raise DataError(f'{found}; it must be {wanted}')


def _fit_images(found: str, name: str, row_shape: tuple[int, ...]) -> Fitted:
    if len(row_shape) == 2:
        spec = ArraySpec((*row_shape, 1), np.dtype(np.uint8))
        note = f'{name} are grey images {row_shape}, stored with a channel as {spec.row_shape}'
        return Fitted(spec, lambda block: block[..., None], note)
    if _is_channel_first(found, row_shape):
        channels, height, width = row_shape
        spec = ArraySpec((height, width, channels), np.dtype(np.uint8))
        note = f'{name} are channel-first {row_shape}, stored as {spec.row_shape}'
        return Fitted(spec, lambda block: np.moveaxis(block, 1, -1), note)
    return Fitted(ArraySpec(row_shape, np.dtype(np.uint8)), _unchanged)


def _is_channel_first(found: str, row_shape: tuple[int, ...]) -> bool:
    """Whether images are (c, h, w) rather than (h, w, c).

    Raises:
        DataError: the shape is ambiguous.
    """
    first, height, last = row_shape
    if last in _CHANNELS or last < min(first, height):
        return False
    if first in _CHANNELS or first < min(height, last):
        return True
    raise DataError(
        f'{found}: it is not clear which axis holds the channels; images must be (h, w, c)'
    )


def _unchanged(block: np.ndarray) -> np.ndarray:
    return block
