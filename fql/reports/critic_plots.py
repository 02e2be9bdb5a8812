"""Pictures of a run's critics."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fql.reports.plots import save_picture

CELLS = 24
"""Bins of a map along its longer side."""


def plot_critic(
    path: Path,
    values: np.ndarray,
    gaps: np.ndarray,
    disagreements: np.ndarray,
    positions: np.ndarray | None,
    best: np.ndarray | None,
    title: str,
) -> None:
    """Draw action gaps against disagreement; in mazes also a map of values and of best actions.

    Args:
        path: the PNG to write.
        values, gaps, disagreements: (n,) of each state.
        positions: (n, 2) or None.
        best: (n, 2) the best action of each state, where actions are directions in the maze.
        title: the figure's.
    """
    panels = 1 + (positions is not None) + (positions is not None and best is not None)
    figure = Figure(figsize=(5 * panels, 4.4), layout='constrained')
    figure.suptitle(title, fontsize=9, parse_math=False)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    scatter = axes.pop(0)
    scatter.scatter(disagreements, gaps, s=8)
    limit = max(float(disagreements.max()), float(gaps.max()), 1e-9)
    scatter.plot([0, limit], [0, limit], color='grey', linewidth=1)
    scatter.set(xlabel='disagreement of the critics', ylabel='action gap')
    if positions is None:
        save_picture(figure, path)
        return
    centres, groups = binned(positions)
    means = np.array([values[group].mean() for group in groups])
    shown = axes[0].scatter(*centres.T, c=means, marker='s', s=60)
    axes[0].set(title='value', aspect='equal')
    figure.colorbar(shown, ax=axes[0])
    if best is not None:
        arrows = np.array([best[group].mean(axis=0) for group in groups])
        gap = np.array([gaps[group].mean() for group in groups])
        drawn = axes[1].quiver(*centres.T, *arrows.T, gap, angles='xy')
        axes[1].set(title='best direction, coloured by the action gap', aspect='equal')
        figure.colorbar(drawn, ax=axes[1])
    save_picture(figure, path)


def binned(positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Centres (c, 2) of the bins that hold positions, and the states in each."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    side = float((high - low).max()) / CELLS or 1.0
    cells = np.floor((positions - low) / side).astype(int)
    names, inverse = np.unique(cells, axis=0, return_inverse=True)
    groups = [np.flatnonzero(inverse.reshape(-1) == i) for i in range(len(names))]
    return low + (names + 0.5) * side, groups
