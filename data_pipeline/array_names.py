"""The names of the arrays of a store and of its sources."""

from collections.abc import Iterable

from data_pipeline.observations import OBSERVATIONS, is_observation

REQUIRED_ARRAYS = (OBSERVATIONS, 'actions', 'terminals')
"""In place of `observations` there may be several arrays, each `observations.NAME`."""
INFO_ARRAYS = ('qpos', 'qvel', 'button_states')
LABEL_ARRAYS = ('rewards', 'masks')
"""Labels stored with the data: both or none."""


def missing_arrays(names: Iterable[str]) -> list[str]:
    """Those of `REQUIRED_ARRAYS` that are not among these names."""
    held = {OBSERVATIONS if is_observation(name) else name for name in names}
    return [name for name in REQUIRED_ARRAYS if name not in held]
