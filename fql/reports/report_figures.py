"""Drawings of a report, as SVG that takes the colour of the text around it."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from fql.reports.plots import drawable
from fql.reports.run_results import Group
from fql.reports.statistics import Estimate, curve
from fql.runs.measures import SUCCESS, Measure

COLOURS = (
    *('#3b82c4', '#e07b28', '#3f9e57', '#d9534f'),
    *('#9a6fc0', '#2a9d9a', '#d1619c', '#8f8f2b'),
)
"""Colours of the agents; readable on white and on black."""
_INK = '#010203'
"""Stands for the colour of the text, until the SVG is written."""
STRIP = (180, 22)
"""Width and height of a strip."""


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name; after the last one the colours repeat."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def learning_curves(groups: Sequence[Group], colour_of: Mapping[str, str]) -> str:
    """Results of a task against updates: means over seeds, and their 95 % intervals."""
    settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': groups[0].task, 'font.size': 11}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.9, 3.1), layout='constrained')
        axes = figure.subplots()
        for group in groups:
            value, low, high = map(drawable, curve(group.results))
            colour = colour_of[group.name]
            axes.plot(group.steps, value, color=colour, marker='o', ms=3, lw=2, label=group.name)
            axes.fill_between(group.steps, low, high, color=colour, alpha=0.18, lw=0)
            axes.plot(group.steps, drawable(group.results.T), color=colour, lw=0.6, alpha=0.45)
        measure = groups[0].measure
        axes.set_xlabel('updates', color=_INK)
        axes.set_xlim(left=0)
        axes.set_ylabel(measure.name, color=_INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        if measure == SUCCESS:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(color=_INK, alpha=0.15)
        axes.tick_params(colors=_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
            spine.set_alpha(0.4)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
    text = file.getvalue()
    drawing = text[text.index('<svg') :].replace(_INK, 'currentColor')
    name = html.escape(f'Learning curves on {groups[0].task}')
    return drawing.replace('<svg', f'<svg role="img" aria-label="{name}"', 1)


def strip(
    measure: Measure,
    values: np.ndarray,
    middle: Estimate,
    published: float | None,
    ends: tuple[float, float],
    colour: str,
) -> str:
    """The seeds as dots, their mean as a line with its interval, and a paper's mean as a diamond.

    Args:
        published: in the unit of `values`, if there is one.
        ends: the values at both ends of the strip.
    """
    width, height = STRIP
    low, high = ends

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(6 + (width - 12) * min(max(share, 0), 1), 1)

    y = height / 2
    parts = [f'<line x1="6" x2="{width - 6}" y1="{y}" y2="{y}" class="rail"/>']
    if np.isfinite(middle.low):
        left, right = place(middle.low), place(middle.high)
        parts.append(
            f'<rect x="{left}" y="{y - 6}" width="{max(right - left, 1):.1f}" height="12" rx="3" '
            f'fill="{colour}" opacity="0.3"/>'
        )
    parts += [
        f'<circle cx="{place(value)}" cy="{y}" r="2.6" fill="{colour}" opacity="0.75"/>'
        for value in values.tolist()
    ]
    x = place(middle.value)
    parts.append(
        f'<line x1="{x}" x2="{x}" y1="{y - 8}" y2="{y + 8}" stroke="{colour}" class="mean"/>'
    )
    if published is not None:
        x = place(published)
        points = f'{x},{y - 6} {x + 6},{y} {x},{y + 6} {x - 6},{y}'
        parts.append(f'<polygon points="{points}" class="paper"/>')
    name = f'seeds {", ".join(map(measure.text, values.tolist()))}'
    return (
        f'<svg class="strip" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(name)}"><title>{html.escape(name)}</title>{"".join(parts)}</svg>'
    )


def strip_ends(groups: Sequence[Group]) -> tuple[float, float]:
    """The ends of a task's strips: the possible range of success or score, or the observed one."""
    measure = groups[0].measure
    if measure == SUCCESS:
        return 0.0, 1.0
    values = np.concatenate([group.last for group in groups])
    if measure.name == 'score':
        return min(0.0, float(values.min())), max(100.0, float(values.max()))
    return float(values.min()), float(values.max())
