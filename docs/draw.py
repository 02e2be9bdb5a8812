"""Draws images/online-cube.png and images/steadiness.png from the CSVs: python docs/draw.py."""

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parent
ONLINE_CUBE = {
    'fql-one-step': 'FQL, one step, online from 20,000',
    'fql-one-step-offline-only': 'FQL, one step, offline only',
    'fql': 'FQL, five steps, online from 20,000',
    'fql-ucb': 'the same with --exploration ucb',
    'fql-offline-only': 'FQL, five steps, offline only',
    'rlpd': 'RLPD, online from 0',
}
STEADINESS = {
    'one-step': 'FQL, 1-step returns',
    'five-steps': 'FQL, 5-step returns',
    'qc-fql': 'QC-FQL, chunks of five actions (from states)',
}
SMALL_TASKS = {
    'maze': "the quickstart's maze",
    'far-maze': 'the maze, farther goal',
    'puzzle': 'the small puzzle',
    'cube-single-states': 'cube-single from states',
    'scene-states': 'scene from states',
    'puzzle-3x3-states': 'puzzle-3x3 from states',
}


def read(name: str, run: str) -> dict[tuple[str, ...], list[tuple[int, float]]]:
    """(update, success in %) of each run of a CSV, by (task, run, seed)."""
    runs = defaultdict(list)
    with (DOCS / name).open() as file:
        for row in csv.DictReader(file):
            key = (row.get('task', ''), row[run], row['seed'])
            runs[key].append((int(row['update']), 100 * float(row['success'])))
    return runs


def draw(axes: Axes, runs: list[list[tuple[int, float]]], title: str) -> None:
    """The mean of the runs as a thick line, and each of them as a thin one."""
    at = defaultdict(list)
    for run in runs:
        for update, success in run:
            at[update].append(success)
    updates = sorted(at)
    means = [sum(at[update]) / len(at[update]) for update in updates]
    (mean,) = axes.plot(updates, means, label=title, linewidth=2)
    for run in runs:
        axes.plot(*zip(*sorted(run), strict=True), color=mean.get_color(), linewidth=0.6)


def finish(axes: Axes, episodes: int) -> None:
    """Labels and grid."""
    axes.set(xlabel='update', ylabel=f'success, % of {episodes} episodes', ylim=(-2, 102))
    axes.locator_params(axis='x', nbins=5)
    axes.grid(alpha=0.3)


def draw_online_cube() -> None:
    """Offline to online on cube-single from states."""
    runs = read('online-cube.csv', 'run')
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for name, title in ONLINE_CUBE.items():
        draw(axes, [values for key, values in runs.items() if key[1] == name], title)
    axes.axvline(20_000, color='gray', linewidth=0.8, linestyle=':')
    finish(axes, episodes=50)
    axes.legend(fontsize='small', loc='upper left')
    figure.savefig(DOCS / 'images' / 'online-cube.png', dpi=110)


def draw_steadiness() -> None:
    """FQL and QC-FQL on the small tasks, three from pixels, three from states."""
    runs = read('steadiness.csv', 'variant')
    figure, panels = plt.subplots(2, 3, figsize=(11, 6.4), layout='constrained')
    for axes, (task, task_title) in zip(panels.flat, SMALL_TASKS.items(), strict=True):
        for variant, title in STEADINESS.items():
            chosen = [values for key, values in runs.items() if key[:2] == (task, variant)]
            if chosen:
                draw(axes, chosen, title)
        axes.set_title(task_title)
        finish(axes, episodes=50 if task.endswith('-states') else 20)
    handles_and_labels = panels[1, 0].get_legend_handles_labels()
    figure.legend(*handles_and_labels, loc='outside lower center', ncols=3)
    figure.savefig(DOCS / 'images' / 'steadiness.png', dpi=110)


draw_online_cube()
draw_steadiness()
