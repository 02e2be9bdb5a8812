"""Folders of saved encoders, made whole or not at all."""

from pathlib import Path

from data_pipeline.files import atomic_folder
from encoders.description import SavedEncoder
from encoders.errors import EncoderError
from encoders.saved import Params, save_encoder


def save_encoder_folder(
    folder: Path, params: Params, saved: SavedEncoder, *, replace: bool = False
) -> None:
    """`encoders.saved.save_encoder` into a new folder.

    Args:
        replace: whether this encoder may replace an existing one.

    Raises:
        EncoderError: the folder exists and is not to be replaced, or the parameters are not those
            of such an encoder.
    """
    if folder.exists() and not replace:
        raise EncoderError(f'{folder.absolute()} exists; choose another folder or move it away')
    try:
        with atomic_folder(folder.absolute(), replace=replace) as new:
            save_encoder(new, params, saved)
    except FileExistsError:
        raise EncoderError(f'{folder} was just made by another process') from None
