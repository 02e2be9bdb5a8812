"""Linear probes: how much of a known quantity can be read off features by a linear map."""

from dataclasses import dataclass

import numpy as np

PENALTIES = np.logspace(-7, 1, 17)
"""Candidate ridge penalties, for standardised features and a mean squared error."""
HELD_OUT = 0.2
"""Fraction of the training rows, at the end, on which the penalty is chosen."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map of standardised features: `(features - mean) / scale @ weights + intercept`.

    Attributes:
        mean, scale: (d,) float64, of the features it was fitted to.
        weights: (d, m) float64.
        intercept: (m,) float64.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Targets (n, m) float64 of features (n, d)."""
        return _standardise(features, self.mean, self.scale) @ self.weights + self.intercept


def fit_probe(features: np.ndarray, targets: np.ndarray) -> Probe:
    """Ridge regression in closed form, float64.

    Each target gets the penalty of `PENALTIES` with the least error on the last rows after a fit to
    the others. Rows drawn at random would show nothing, as neighbouring rows are nearly equal.

    Args:
        features: (n, d) float.
        targets: (n, m) float.
    """
    first = round(len(features) * (1 - HELD_OUT))
    candidates = _fit_all(features[:first], targets[:first])
    errors = [np.mean((p(features[first:]) - targets[first:]) ** 2, axis=0) for p in candidates]
    best = np.argmin(errors, axis=0)
    probes = _fit_all(features, targets)
    weights = [probes[choice].weights[:, i] for i, choice in enumerate(best)]
    return Probe(probes[0].mean, probes[0].scale, np.stack(weights, axis=1), probes[0].intercept)


def r_squared(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(m,) coefficients of determination of predictions (n, m): 1 is perfect, 0 the targets' mean.

    NaN for a target that is constant.
    """
    residual = np.sum((predicted - targets) ** 2, axis=0)
    total = np.sum((targets - targets.mean(axis=0)) ** 2, axis=0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(total > 0, 1 - residual / total, np.nan)


def _fit_all(features: np.ndarray, targets: np.ndarray) -> list[Probe]:
    """A probe for each of `PENALTIES`, from one decomposition."""
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-8, scale, 1.0)  # A dead feature is 0 after the shift.
    x = _standardise(features, mean, scale)
    intercept = targets.mean(axis=0, dtype=np.float64)
    y = targets - intercept
    # (X^T X + p)^-1 X^T y = X^T (X X^T + p)^-1 y: the smaller of the two matrices is decomposed.
    is_wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh((x @ x.T if is_wide else x.T @ x) / len(x))
    projected = vectors.T @ ((y if is_wide else x.T @ y) / len(x))
    basis = x.T @ vectors if is_wide else vectors
    return [
        Probe(mean, scale, basis @ (projected / (np.maximum(values, 0) + p)[:, None]), intercept)
        for p in PENALTIES
    ]


def _standardise(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (features.astype(np.float64) - mean) / scale
