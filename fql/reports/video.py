"""Videos of recorded episodes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.files import replacing

_MIN_PIXELS = 192
_CAPTION_PIXELS = 40
_HOLD_SECONDS = 1.0
_RUNNING, _SUCCEEDED, _FAILED = (40, 40, 40), (0, 100, 0), (130, 0, 0)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded episode.

    Attributes:
        number: of the episode.
        frames: (n, h, w, 3) uint8, the last one that of the end.
        steps: (n,) after how many steps each frame was taken.
        success: of the last step; NaN where the environment reports none.
    """

    number: int
    frames: np.ndarray
    steps: Sequence[int]
    success: float


def save_video(path: Path | str, recordings: list[Recording], fps: float) -> None:
    """Write episodes side by side, each under its number and, at its end, its outcome.

    Small frames are enlarged. The last frame of a shorter episode stays until the longest ends,
    and all of them a second longer.

    Args:
        path: the file to write; its ending says what it becomes: .gif, which loops, or .mp4.
        recordings: all of one h and w.
        fps: frames per second.
    """
    import imageio.v3 as iio

    length = max(len(recording.frames) for recording in recordings) + round(fps * _HOLD_SECONDS)
    columns = [_column(recording, length) for recording in recordings]
    for column in columns[:-1]:
        column[:, :, -1] = 0  # A dark line separates the episodes.
    tiled = np.concatenate(columns, axis=2)
    # In memory first: imageio opens a GIF when it is closed, where a fault is not raised, and
    # ffmpeg writes under the file's own name.
    if Path(path).suffix == '.mp4':
        even = [(0, 0), *((0, size % 2) for size in tiled.shape[1:3]), (0, 0)]
        with warnings.catch_warnings():
            # JAX warns of every fork; this child becomes ffmpeg at once.
            warnings.filterwarnings('ignore', message=r'os\.fork', category=RuntimeWarning)
            video = iio.imwrite(
                '<bytes>',
                np.pad(tiled, even),
                extension='.mp4',
                plugin='FFMPEG',
                fps=fps,
                macro_block_size=2,
            )
    else:
        video = iio.imwrite('<bytes>', tiled, extension='.gif', duration=1000 / fps, loop=0)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(video)


def _column(recording: Recording, length: int) -> np.ndarray:
    """(length, h, w, 3): an episode's enlarged frames under their captions."""
    frames = recording.frames
    scale = max(1, -(-_MIN_PIXELS // min(frames.shape[1:3])))
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    captioned = [
        np.concatenate([_caption(recording, place, large.shape[2]), large[place]])
        for place in range(len(frames))
    ]
    return np.stack(captioned + captioned[-1:] * (length - len(frames)))


def _caption(recording: Recording, place: int, width: int) -> np.ndarray:
    """(h, width, 3): the episode's number, and the step, or the outcome at its end."""
    outcome, colour = f'step {recording.steps[place]}', _RUNNING
    if place == len(recording.frames) - 1:
        last = recording.steps[place]
        if np.isnan(recording.success):
            outcome = f'ended after {last} steps'
        elif recording.success > 0:
            outcome, colour = f'success after {last} steps', _SUCCEEDED
        else:
            outcome, colour = f'no success in {last} steps', _FAILED
    image = Image.new('RGB', (width, _CAPTION_PIXELS), colour)
    draw = ImageDraw.Draw(image)
    for line, text in enumerate((f'episode {recording.number}', outcome)):
        draw.text((6, 4 + 17 * line), text, fill='white', font=_font())
    return np.asarray(image)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=13)
