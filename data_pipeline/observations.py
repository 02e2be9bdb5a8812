"""Observations of one array, or of several by name: a robot's cameras and its proprioception.

One array stands for itself wherever observations are passed on; several are a dictionary. In a
store the first is called `observations`, the others `observations.NAME`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError

OBSERVATIONS = 'observations'
NO_KEYS: Mapping[str, str] = MappingProxyType({})
"""Of `observation_keys`, where the source's layout says which its observations are."""


def named(observations: Any) -> dict[str, Any]:
    """The arrays, or what there is of each, by name; that of a single array is ''."""
    return dict(observations) if isinstance(observations, Mapping) else {'': observations}


def unnamed(arrays: Mapping[str, Any]) -> Any:
    """The inverse of `named`."""
    return arrays[''] if arrays.keys() == {''} else dict(arrays)


def map_named(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """What `function` makes of each array, in the form that the first observations have."""
    rest = [named(other) for other in others]
    return unnamed(
        {
            name: function(value, *(other[name] for other in rest))
            for name, value in named(first).items()
        }
    )


def array_name(name: str) -> str:
    """What the array of a name, of `named`, is called in a store."""
    return f'{OBSERVATIONS}.{name}' if name else OBSERVATIONS


def is_observation(array: str) -> bool:
    """Whether a store's array of this name is one of the observations."""
    return array.partition('.')[0] == OBSERVATIONS


def pick_observations(arrays: Mapping[str, Any]) -> Any:
    """The observations among a store's arrays: one, or several in the order of their names."""
    return unnamed(
        {
            array.partition('.')[2]: value
            for array, value in sorted(arrays.items())
            if is_observation(array)
        }
    )


def observation_keys(words: Sequence[str]) -> dict[str, str]:
    """Which arrays of a source are the observations, by the names that they get.

    Args:
        words: `KEY` or `NAME=KEY` each. A single KEY has the name ''; of several, each is named by
            what follows its last slash.

    Raises:
        DataError: two have one name, or one that is no file's.
    """
    keys: dict[str, str] = {}
    for word in words:
        name, equals, key = word.rpartition('=')
        if not equals:
            name = key.rpartition('/')[2] if len(words) > 1 else ''
        if name in keys:
            raise DataError(f'two observations are called {name!r}; name them with NAME=KEY')
        if name or equals:
            check_name(name)
        keys[name] = key
    return keys


def describe(shapes: Any, dtypes: Any) -> str:
    """`64x64x9 uint8`, or of several `front 64x64x9 uint8, state 7 float32`."""
    texts = {
        name: f'{"x".join(map(str, shape))} {named(dtypes)[name]}'
        for name, shape in named(shapes).items()
    }
    return ', '.join(f'{name} {text}'.lstrip() for name, text in texts.items())


def flattened(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a batch: of a field that holds several, each as `FIELD.NAME`."""
    return {
        f'{field}.{name}' if name else field: array
        for field, value in batch.items()
        for name, array in named(value).items()
    }
