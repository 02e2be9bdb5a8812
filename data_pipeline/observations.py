"""Observations of one array, or of several by name: a robot's cameras and its proprioception.

A single array is passed on as it is, several as a dictionary by name. In a store a single array is
called `observations`, each of several `observations.NAME`.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError

OBSERVATIONS = 'observations'
NO_KEYS: Mapping[str, str] = MappingProxyType({})
"""A result of `observation_keys` for sources whose layout defines the observations."""


def named(observations: Any) -> dict[str, Any]:
    """The arrays, or one value for each, by name; the name of a single array is ''."""
    return dict(observations) if isinstance(observations, Mapping) else {'': observations}


def unnamed(arrays: Mapping[str, Any]) -> Any:
    """The inverse of `named`."""
    return arrays[''] if arrays.keys() == {''} else dict(arrays)


def map_named(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply `function` to each array; the result has the form of the first observations."""
    rest = [named(other) for other in others]
    return unnamed(
        {
            name: function(value, *(other[name] for other in rest))
            for name, value in named(first).items()
        }
    )


def array_name(name: str) -> str:
    """The array name in a store of a name of `named`."""
    return f'{OBSERVATIONS}.{name}' if name else OBSERVATIONS


def is_observation(array: str) -> bool:
    """Whether a store's array of this name is one of the observations."""
    return array.partition('.')[0] == OBSERVATIONS


def pick_observations(arrays: Mapping[str, Any]) -> Any:
    """The observations among a store's arrays: one, or several sorted by name."""
    return unnamed(
        {
            array.partition('.')[2]: value
            for array, value in sorted(arrays.items())
            if is_observation(array)
        }
    )


def observation_keys(arguments: Sequence[str]) -> dict[str, str]:
    """The keys of the observations in a source, by the names that they get in the store.

    Args:
        arguments: `KEY` or `NAME=KEY` each. A single KEY has the name ''; each of several is named
            by the part after its last slash.

    Raises:
        DataError: two have the same name, or a name is not valid.
    """
    keys: dict[str, str] = {}
    for argument in arguments:
        name, equals, key = argument.partition('=')
        if not equals:
            name, key = argument.rpartition('/')[2] if len(arguments) > 1 else '', argument
        if name in keys:
            raise DataError(f'two observations are called {name!r}; name them with NAME=KEY')
        if equals or len(arguments) > 1:
            check_name(name)
            check_name(array_name(name))  # Longer.
        keys[name] = key
    return keys


def choose_keys(
    origin: Path | str,
    offered: Sequence[str],
    asked: Mapping[str, str],
    held: Container[str] | None = None,
) -> Mapping[str, str]:
    """The requested observation keys by name, or the only one offered if none is requested.

    Args:
        held: what can be requested, if that is more than what is offered.

    Raises:
        DataError: a requested key is not held, or none is requested and not exactly one is offered.
    """
    held = offered if held is None else held
    unknown = [key for key in asked.values() if key not in held]
    if asked and not unknown:
        return asked
    if len(offered) == 1 and not asked:
        return {'': offered[0]}
    if not offered:
        raise DataError(f'{origin}: holds no observations')
    wanted = f'no observation {unknown[0]!r}' if unknown else 'not a single observation'
    listed = ', '.join(offered)
    raise DataError(f'{origin}: {wanted}; choose with --observation-key from {listed}')


def describe_observations(shapes: Any, dtypes: Any) -> str:
    """`64x64x9 uint8`, or of several `front 64x64x9 uint8, state 7 float32`."""
    texts = {
        name: f'{"x".join(map(str, shape))} {named(dtypes)[name]}'
        for name, shape in named(shapes).items()
    }
    return ', '.join(f'{name} {text}'.lstrip() for name, text in texts.items())


def flattened(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a batch; those of a field with several arrays are called `FIELD.NAME`."""
    return {
        f'{field}.{name}' if name else field: array
        for field, value in batch.items()
        for name, array in named(value).items()
    }
