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
        image_shape: (h, w, c) of one frame; of several arrays such shapes by name, and (d,) of
            vectors.
        frame_stack: frames along the channels of its input.
        objective: what trained it: a name of `encoders.pretraining`, or an agent's.
        dataset: the name of the data it was trained on.
        step: updates it was trained for.
        versions: of the packages it was trained with.
        digest: `tree_digest` of its parameters; `save_encoder` fills it in.
        cameras: 'separate' or 'shared', see `encoders.cameras.CameraEncoder`; in the file only
            where there are several arrays.
    """

    encoder: str
    image_shape: Any
    frame_stack: int
    objective: str
    dataset: str
    step: int
    versions: Mapping[str, str] = field(default_factory=dict)
    digest: str = ''
    cameras: str = 'separate'

    @property
    def shape_text(self) -> str:
        """The shapes of its input, not stacked: `64x64x3`, or `front 64x64x3, pose 7`."""
        shapes = self.image_shape
        if isinstance(shapes, Mapping):
            return ', '.join(f'{name} {_joined(shape)}' for name, shape in shapes.items())
        return _joined(shapes)


def write_encoder(folder: Path, saved: SavedEncoder) -> None:
    """Write the description of the encoder in `folder`."""
    values = {'format_version': FORMAT_VERSION, **dataclasses.asdict(saved)}
    if not isinstance(saved.image_shape, Mapping):
        del values['cameras']
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
    if not isinstance(values.get('image_shape'), dict):
        values.setdefault('cameras', 'separate')
    if values.keys() != expected:
        wrong = ', '.join(sorted(values.keys() ^ expected))
        raise EncoderError(f'{path}: missing or unknown: {wrong} (written by another version?)')
    if damaged := [name for name, is_sound in _FIELDS.items() if not is_sound(values[name])]:
        raise EncoderError(f'{path}: damaged: {", ".join(damaged)}')
    shapes = values['image_shape']
    if isinstance(shapes, dict):
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
    else:
        shapes = tuple(shapes)
    if values['cameras'] == 'shared' and not can_share(shapes):
        raise EncoderError(f'{path}: damaged: cameras shared, but not several of one shape')
    return SavedEncoder(**{**values, 'image_shape': shapes})


def can_share(shapes: Any) -> bool:
    """Whether there are several images among arrays of these shapes, by name, all of one shape."""
    if not isinstance(shapes, Mapping):
        return False
    images = [shape for shape in shapes.values() if len(shape) == 3]
    return len(images) > 1 and len(set(images)) == 1


def _joined(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_size(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(map(_is_size, value))


def _are_shapes(value: Any) -> bool:
    if not isinstance(value, dict):
        return _is_shape(value, 3)
    shapes = value.values()
    return all(_is_shape(shape, 1, 3) for shape in shapes) and any(len(s) == 3 for s in shapes)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    'encoder': _is_text,
    'image_shape': _are_shapes,
    'frame_stack': _is_size,
    'objective': _is_text,
    'dataset': _is_text,
    'step': _is_count,
    'versions': lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
    'digest': _is_text,
    'cameras': lambda value: value in ('separate', 'shared'),
}
"""Whether a field's JSON value is of its type."""
