"""Encoded images and videos, decoded into blocks of frames."""

import io
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, UnidentifiedImageError

from data_pipeline.errors import DataError, first_line
from data_pipeline.sources.source_files import reading

_BLOCK_FRAMES = 64


def decode_images(origin: str, key: str, column: Any) -> Iterator[np.ndarray]:
    """The images of a column of encoded ones, uint8, in blocks (n, h, w, c), grey ones (n, h, w).

    Args:
        origin: the source's name in errors.
        key: the column's name in errors.
        column: a PyArrow column of bytes, or of structures with such as `bytes`.

    Raises:
        DataError: a value is no image of 8 bits, or of another shape than those of its block.
    """
    for start in range(0, len(column), _BLOCK_FRAMES):
        images: list[np.ndarray] = []
        for row, value in enumerate(column[start : start + _BLOCK_FRAMES].to_pylist(), start):
            data = value.get('bytes') if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise DataError(
                    f'{origin}: {key} holds no encoded image in row {row}; files of images are not '
                    'read'
                )
            try:
                images.append(_picture(data))
            except Exception as error:  # Pillow may raise any exception on damaged images.
                raise DataError(
                    f'{origin}: {key} holds what is no image in row {row}: {first_line(error)}'
                ) from error
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f'{origin}: {key} is {images[-1].shape} in row {row}, {images[0].shape} before'
                )
        yield np.stack(images)


def _picture(data: bytes) -> np.ndarray:
    """An encoded image as (h, w, 3) or grey as (h, w), uint8."""
    with warnings.catch_warnings(action='error', category=Image.DecompressionBombWarning):
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise ValueError('its format is unknown') from None
        with image:
            if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
                raise ValueError(f'its values are of more than 8 bits (mode {image.mode})')
            return np.asarray(image if image.mode == 'L' else image.convert('RGB'))


def read_video(path: Path, fps: float) -> Iterator[np.ndarray]:
    """The frames (h, w, 3) uint8 of a video of so many frames a second, one after the other.

    Raises:
        DataError: it cannot be read, or has another number of frames a second.
    """
    with reading(path):
        path.open('rb').close()  # ffmpeg's message would have several lines.
        # Each frame once, whatever its time: the default fills gaps and drops early frames.
        reader = imageio_ffmpeg.read_frames(
            str(path.absolute()),  # In a relative one, ffmpeg takes "a:b" for a protocol.
            pix_fmt='rgb24',
            input_params=['-noautorotate', '-xerror', '-err_detect', 'explode'],
            output_params=['-fps_mode', 'passthrough'],
        )
        layout = next(reader)
        width, height = layout['size']
        if not math.isclose(layout['fps'], fps, rel_tol=0.01):  # It is printed rounded.
            raise DataError(
                f'{path}: has {layout["fps"]:g} frames a second; meta/info.json says {fps:g}'
            )
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def take_blocks(origin: str, frames: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The next `length` frames, in blocks.

    Raises:
        DataError: there are fewer.
    """
    for start in range(0, length, _BLOCK_FRAMES):
        count = min(_BLOCK_FRAMES, length - start)
        block = list(itertools.islice(frames, count))
        if len(block) < count:
            raise DataError(f'{origin} ends after {start + len(block)} of its {length} frames')
        yield np.stack(block)
