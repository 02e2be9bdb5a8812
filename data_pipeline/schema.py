"""JSON values as dataclasses, checked: no missing fields, no unknown ones, correct types."""

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar('T')


def load_json(path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def read_json(path: Path, cls: type[T]) -> T:
    """The dataclass `cls` that a JSON file describes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or does not describe this dataclass.
    """
    return from_json(cls, load_json(path))


def from_json(cls: type[T], values: Any, given: Mapping[str, Any] | None = None) -> T:
    """The dataclass `cls` that JSON `values` describe; lists become tuples.

    Args:
        values: the result of `json.loads`.
        given: fields that are not taken from `values`.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    return _dataclass(cls, values, '', given or {})


def _dataclass(cls: Any, values: Any, path: str, given: Mapping[str, Any]) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f'{path or "the file"} must be an object, not {_shown(values)}')
    hints = get_type_hints(cls)
    names = {entry.name for entry in dataclasses.fields(cls) if entry.init}
    if missing := sorted(names - values.keys() - given.keys()):
        raise ValueError(f'no field {", ".join(path + name for name in missing)}')
    if unknown := sorted(values.keys() - names):
        raise ValueError(f'unknown field {", ".join(path + name for name in unknown)}')
    fields = {name: _value(hints[name], values[name], path + name) for name in names - given.keys()}
    return cls(**fields, **given)


def _value(kind: Any, value: Any, path: str) -> Any:
    """`value` as the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, f'{path}.', {})
    if origin is Literal:
        if value not in arguments or type(value) is not type(arguments[arguments.index(value)]):
            choices = ', '.join(map(repr, arguments))
            raise ValueError(f'{path} must be one of {choices}, not {_shown(value)}')
        return value
    if origin in (Union, types.UnionType):
        for argument in arguments:
            try:
                return _value(argument, value, path)
            except ValueError:
                continue
        raise _wrong(kind, value, path)
    if origin is tuple and isinstance(value, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_value(arguments[0], item, f'{path}[{i}]') for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(
                _value(argument, item, f'{path}[{i}]')
                for i, (argument, item) in enumerate(zip(arguments, value, strict=True))
            )
        raise _wrong(kind, value, path)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(arguments[1], item, f'{path}.{key}') for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError:
            raise _wrong(kind, value, path) from None
    if origin is None and isinstance(kind, type) and type(value) is kind:
        return value
    raise _wrong(kind, value, path)


def _wrong(kind: Any, value: Any, path: str) -> ValueError:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return ValueError(f'{path} must be {name}, not {_shown(value)}')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
