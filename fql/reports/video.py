"""Recorded episodes as animated pictures."""

from pathlib import Path

import numpy as np

_MIN_PIXELS = 192


def save_gif(path: Path | str, frames: list[np.ndarray], fps: float) -> None:
    """Writes episodes side by side as one GIF that loops; small frames are enlarged.

    Args:
        path: the file to write.
        frames: for each episode, (length, h, w, 3) uint8, all of one h and w; the last frame of a
            shorter episode stays until the longest ends.
        fps: frames per second.
    """
    import imageio.v3 as iio

    length = max(len(episode) for episode in frames)
    # A column of background parts the episodes.
    held = [
        np.pad(
            np.concatenate([episode, np.repeat(episode[-1:], length - len(episode), axis=0)]),
            ((0, 0), (0, 0), (0, int(episode is not frames[-1])), (0, 0)),
        )
        for episode in frames
    ]
    tiled = np.concatenate(held, axis=2)
    scale = max(1, -(-_MIN_PIXELS // min(frames[0].shape[1:3])))
    enlarged = tiled.repeat(scale, axis=1).repeat(scale, axis=2)
    iio.imwrite(path, enlarged, extension='.gif', duration=1000 / fps, loop=0)
