"""The description that a saved encoder's folder contains. Imports nothing slow."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encoders.errors import EncoderError

FORMAT_VERSION = 1
DESCRIPTION = 'encoder.json'


@dataclass(frozen=True)
class SavedEncoder:
    """The description of a saved encoder.

    Attributes:
        encoder: its size, a key of `ENCODERS`.
        image_shape: (h, w, c) of one frame.
        frame_stack: frames along the channels of its input.
        objective: training objective: a name of `encoders.pretraining`, or 'fql'.
        dataset: the name of the data it was trained on.
        step: updates it was trained for.
        versions: of the packages it was trained with.
        digest: `tree_digest` of its parameters; `save_encoder` fills it in.
    """

    encoder: str
    image_shape: tuple[int, int, int]
    frame_stack: int
    objective: str
    dataset: str
    step: int
    versions: Mapping[str, str] = field(default_factory=dict)
    digest: str = ''


def write_encoder(folder: Path, saved: SavedEncoder) -> None:
    """Write the description of the encoder in `folder`."""
    values = {'format_version': FORMAT_VERSION, **dataclasses.asdict(saved)}
    (folder / DESCRIPTION).write_text(json.dumps(values, indent=2) + '\n')


def read_encoder(folder: Path) -> SavedEncoder:
    """Read the description of the encoder in `folder`, without its parameters.

    Raises:
        EncoderError: the folder holds no encoder, or one that this version cannot read.
    """
    path = Path(folder) / DESCRIPTION
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError):
        raise EncoderError(f'{folder} is not a saved encoder: it has no {DESCRIPTION}') from None
    except (ValueError, RecursionError) as error:
        raise EncoderError(f'{path} is not valid JSON: {error}') from None
    version = values.pop('format_version', None) if isinstance(values, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise EncoderError(f'{path}: format version {version}, this program reads {FORMAT_VERSION}')
    expected = {entry.name for entry in dataclasses.fields(SavedEncoder)}
    if values.keys() != expected:
        wrong = ', '.join(sorted(values.keys() ^ expected))
        raise EncoderError(f'{path}: missing or unknown: {wrong} (written by another version?)')
    if damaged := [name for name, is_sound in _FIELDS.items() if not is_sound(values[name])]:
        raise EncoderError(f'{path}: damaged: {", ".join(damaged)}')
    return SavedEncoder(**{**values, 'image_shape': tuple(values['image_shape'])})


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    'encoder': _is_text,
    'image_shape': lambda value: (
        isinstance(value, list) and len(value) == 3 and all(map(_is_size, value))
    ),
    'frame_stack': _is_size,
    'objective': _is_text,
    'dataset': _is_text,
    'step': _is_count,
    'versions': lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    'digest': _is_text,
}
"""Whether a field's JSON value is of its type."""
