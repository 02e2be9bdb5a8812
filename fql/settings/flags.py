"""The names by which a command's arguments give the fields of a configuration."""

from typing import Any, get_type_hints


def flag_of(config: Any, field_name: str) -> str:
    """The name of a field's flag, with _ for -: that of its `tyro.conf.arg`, else the field's."""
    hint = get_type_hints(type(config), include_extras=True)[field_name]
    named = (getattr(mark, 'name', None) for mark in getattr(hint, '__metadata__', ()))
    name: str = next(filter(None, named), field_name)
    return name.replace('-', '_')
