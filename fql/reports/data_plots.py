"""Pictures of a dataset."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_pipeline.store.frame_store import Split
from fql.reports.plots import as_rgb, first_shown, save_picture

TRAJECTORIES, MOMENTS = 8, 10
_MAX_ACTION_PLOTS = 24


def plot_frames(path: Path, split: Split, title: str) -> None:
    """Draw some trajectories, one a row, from their first to their last observation.

    Images are shown as they are; vectors as lines over the rows of the trajectory. Of several
    observations, the first image is shown.
    """
    shown, observations = first_shown(split.observations)
    title = f'{title} {shown}'.rstrip()
    lengths = split.lengths
    firsts = np.cumsum(lengths) - lengths
    chosen = np.unique(np.linspace(0, len(lengths) - 1, TRAJECTORIES).astype(int))
    is_image = observations.ndim == 4
    columns = MOMENTS if is_image else 1
    figure = Figure(figsize=(12, 1.3 * len(chosen) + 0.6), layout='constrained')
    figure.suptitle(f'{title}, {split.name}', fontsize=9, parse_math=False)
    grid = figure.subplots(len(chosen), columns, squeeze=False)
    for i, trajectory in enumerate(chosen):
        first, length = firsts[trajectory], lengths[trajectory]
        if not is_image:
            grid[i, 0].plot(observations[first : first + length], linewidth=0.7)
            grid[i, 0].set_title(f'trajectory {trajectory}', fontsize=7)
            continue
        rows = first + np.linspace(0, length - 1, columns).astype(int)
        for axes, row in zip(grid[i], rows, strict=True):
            axes.imshow(as_rgb(observations[row]))
            axes.set(xticks=[], yticks=[])
            axes.set_title(f'row {row:,}', fontsize=7)
        grid[i, 0].set_ylabel(f'{trajectory}', fontsize=8)
    save_picture(figure, path)


def plot_histograms(path: Path, split: Split, title: str) -> None:
    """Draw histograms of the trajectories' lengths and of each dimension of the actions."""
    actions = split.actions[split.valid_rows]
    dims = min(actions.shape[1], _MAX_ACTION_PLOTS)
    columns = 4
    figure = Figure(figsize=(12, 2.3 * -(-(dims + 1) // columns) + 0.5), layout='constrained')
    figure.suptitle(f'{title}, {split.name}', fontsize=9, parse_math=False)
    grid = figure.subplots(-(-(dims + 1) // columns), columns, squeeze=False).ravel()
    grid[0].hist(split.lengths - 1, bins=30, range=(0, 1.1 * split.lengths.max()))
    grid[0].set_title('transitions in a trajectory', fontsize=8)
    for i in range(dims):
        grid[i + 1].hist(actions[:, i], bins=50, range=(-1, 1), color='C1')
        grid[i + 1].set_title(f'action {i}', fontsize=8)
    for axes in grid:
        axes.tick_params(labelsize=7)
        axes.set_visible(axes.has_data())
    save_picture(figure, path)
