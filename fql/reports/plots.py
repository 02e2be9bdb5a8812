"""Pictures of a run and of a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data_pipeline.files import replacing
from data_pipeline.observations import named
from fql.runs.measures import SUCCESS, Measure, measure_of
from fql.runs.metrics_log import read_csv
from fql.runs.run_folder import RunFolder

BATCH_ROWS = 8
LARGEST_DRAWN = 1e100
LOSSES = (
    *('critic/loss', 'value/loss', 'actor/bc_flow_loss', 'actor/distill_loss'),
    *('actor/mse', 'actor/squared_error'),
)
"""Losses that are never negative; each agent has some of them."""


def plot_learning_curve(
    run: RunFolder, title: str, baselines: Mapping[str, float] | None = None
) -> None:
    """Draw `learning_curve` into `run.learning_curve`, whole or not at all."""
    save_picture(learning_curve(run, title, baselines), run.learning_curve)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)


def learning_curve(
    run: RunFolder, title: str, baselines: Mapping[str, float] | None = None
) -> Figure:
    """Results, losses and Q values against updates.

    Args:
        baselines: success of other policies, drawn as horizontal lines.
    """
    figure = Figure(figsize=(13, 4.6), layout='constrained')
    results, losses, q_values = figure.subplots(1, 3)
    figure.suptitle(title, parse_math=False)

    evaluations = read_csv(run.eval_csv)
    measure = measure_of(evaluations)
    _line(results, evaluations, measure.column, 'policy', marker='o')
    for i, (name, value) in enumerate((baselines or {}).items()):
        results.axhline(value, linestyle='--', color=f'C{i + 1}', label=name)
    results.set_title(measure.name)
    _limit(results, measure)

    rows = read_csv(run.train_csv)
    for name in LOSSES:
        _line(losses, rows, name, name)
    losses.set(title='losses', yscale='log')
    for name in ('critic/q_max', 'critic/q_mean', 'critic/q_min'):
        _line(q_values, rows, name, name)
    q_values.set(title='Q values of the data')

    for axes in (results, losses, q_values):
        axes.set_xlabel('updates')
        axes.grid(alpha=0.3)
        _show_equal_lines(axes)
        if axes.get_legend_handles_labels()[0]:
            # Below: inside it would cover points.
            axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9)
    return figure


def _show_equal_lines(axes: Axes) -> None:
    """Make each labelled line thinner than those that it covers."""
    handles, _ = axes.get_legend_handles_labels()
    lines = [line for line in handles if isinstance(line, Line2D)]
    for i, line in enumerate(reversed(lines)):
        line.set_linewidth(1.5 + min(1.8, 6 / len(lines)) * i)


def _limit(axes: Axes, measure: Measure) -> None:
    """Show the whole range of success."""
    if measure == SUCCESS:
        axes.set_ylim(-0.03, 1.03)


def drawable(values: Any) -> np.ndarray:
    """The values, NaN for those too large for Matplotlib, whose computation of ticks overflows."""
    values = np.asarray(values, np.float64)
    return np.where(np.abs(values) < LARGEST_DRAWN, values, np.nan)


def _line(axes: Axes, rows: list[dict[str, str]], name: str, label: str, marker: str = '') -> None:
    if rows and name in rows[0]:
        steps = [int(row['step']) for row in rows]
        values = drawable([float(row[name]) for row in rows])
        axes.plot(steps, values, label=label, marker=marker)


def plot_batch(path: Path, arrays: Mapping[str, Any], offsets: Sequence[int], title: str) -> None:
    """Draw the first transitions of a batch, one a row: its stack, then the rest of the next one.

    Of several observations, the first image is shown.

    Args:
        path: the PNG to write.
        arrays: a batch of the loader: `inputs` (b, n, h, w, c), uint8 or float in [0, 1], or
            (b, n, d) for vectors, or several of these by name, the distinct ones of both stacks;
            `actions`, `rewards`, `masks`, `indices`, `shifts`. Of several steps, rewards and masks
            are those up to the last one.
        offsets: of each of the n, how many steps after t it was.
        title: the figure's.
    """
    shown, frames = first_shown(arrays['inputs'])
    frames = frames[:BATCH_ROWS]
    shifts = named(arrays['shifts'])[shown]
    title = f'{title} {shown}'.rstrip()
    rows, columns = frames.shape[:2]
    figure = Figure(figsize=(1.7 * columns + 2.6, 1.7 * rows + 0.6), layout='constrained')
    figure.suptitle(title, fontsize=9, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i in range(rows):
        for j in range(columns):
            axes = grid[i, j]
            axes.set(xticks=[], yticks=[])
            if frames.ndim == 5:
                axes.imshow(as_rgb(frames[i, j]))
            else:
                axes.bar(range(frames.shape[-1]), frames[i, j])
            if i == 0:
                axes.set_title(_frame_name(offsets[j]), fontsize=8)
        reward, mask = (np.ravel(arrays[name][i])[-1] for name in ('rewards', 'masks'))
        actions = np.array2string(arrays['actions'][i], precision=2, suppress_small=True)
        grid[i, -1].text(
            1.06,
            0.5,
            f'row {arrays["indices"][i]}\nreward {reward:g}  mask {mask:g}\n'
            f'shift {tuple(shifts[i].tolist())}\n'
            f'action\n{actions}',
            transform=grid[i, -1].transAxes,
            fontsize=7,
            va='center',
        )
    save_picture(figure, path)


def _frame_name(offset: int) -> str:
    return f'frame t{offset:+d}' if offset else 'frame t'


def first_shown(observations: Any) -> tuple[str, Any]:
    """The name and the array of the first image, or where there is none, of the first vector."""
    return min(named(observations).items(), key=lambda item: (-item[1].ndim, item[0]))


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """(h, w, c) as Matplotlib draws it: RGB or RGBA as it is, of other images the first channel."""
    return frame if frame.shape[-1] in (3, 4) else frame[..., :1].repeat(3, axis=-1)
