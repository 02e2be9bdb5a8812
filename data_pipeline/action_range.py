"""Scaling of actions: [-1, 1] in stores and policies, the user's units elsewhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.schema import from_json

ACTION_TOLERANCE = 1e-3
"""How far beyond [-1, 1] actions are clipped and counted; those further out are refused."""


@dataclass(frozen=True)
class ActionRange:
    """The smallest and the largest value of each dimension, stored as -1 and 1."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = zip(self.low, self.high, strict=True)
        if not all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in pairs):
            raise ValueError(f'no range of actions: {self.low} to {self.high}')

    @property
    def json(self) -> dict[str, list[float]]:
        """The range as JSON values, see `action_range_from_json`."""
        return {'low': list(self.low), 'high': list(self.high)}

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """The user's actions (..., a) scaled to [-1, 1]; 0 where a dimension has only one value."""
        low, high = np.array(self.low), np.array(self.high)
        with np.errstate(all='ignore'):  # What is too large becomes infinite, and is refused.
            span = np.where(high > low, high - low, 1)
            return np.where(high > low, (actions - low) / span * 2 - 1, 0)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `to_unit`; actions beyond [-1, 1] are clipped."""
        low, high = np.array(self.low), np.array(self.high)
        return low + (np.clip(actions, -1, 1) + 1) / 2 * (high - low)


def action_range_from_json(values: Any) -> ActionRange | None:
    """The range that a manifest, a replay or a run has stored, if any.

    Raises:
        ValueError: it is damaged.
    """
    return None if values is None else from_json(ActionRange, values)
