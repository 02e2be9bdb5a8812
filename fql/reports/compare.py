"""The success of several runs, those that differ in a number only taken together."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fql.errors import FQLError
from fql.reports.plots import plot_successes
from fql.reports.tables import format_table
from fql.training.rollouts import recorded_successes
from fql.training.run_folder import RunFolder

Successes = dict[int, float]


def compare_runs(runs: Iterable[Path], picture: Path) -> str:
    """Draws the curves of run folders; returns a table.

    Raises:
        FQLError: a folder has no evaluations.
    """
    groups = {name: list(map(read_run, paths)) for name, paths in group_runs(runs).items()}
    plot_successes(picture, {name: common_steps(runs) for name, runs in groups.items()})
    return format_groups(groups)


def group_runs(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Run folders by name without a number at its end, in the order given."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[re.sub(r'[-_.]?\d+$', '', path.name) or path.name].append(path)
    return dict(groups)


def read_run(path: Path) -> Successes:
    """The success of each evaluation, by step."""
    successes = recorded_successes(RunFolder(path).eval_csv)
    if not successes:
        raise FQLError(f'{path}: no run folder with evaluations')
    return successes


def common_steps(runs: list[Successes]) -> tuple[list[int], np.ndarray]:
    """The steps at which all runs of a group were evaluated, and success, (runs, steps)."""
    steps = sorted(set.intersection(*map(set, runs)))
    return steps, np.array([[successes[step] for step in steps] for successes in runs])


def format_groups(groups: Mapping[str, list[Successes]]) -> str:
    """A line for each group: its runs' last success, and their mean over all evaluations."""
    rows = []
    for name, runs in groups.items():
        last = [successes[max(successes)] for successes in runs]
        mean = np.mean([np.mean(list(successes.values())) for successes in runs])
        updates = sorted({max(successes) for successes in runs})
        rows.append(
            [
                name,
                str(len(runs)),
                ', '.join(f'{n:,}' for n in updates),
                f'{np.mean(last):.1%}',
                f'{min(last):.1%} to {max(last):.1%}',
                f'{mean:.1%}',
            ]
        )
    header = ['', 'runs', 'updates', 'success', 'of single runs', 'mean of all evaluations']
    return format_table(header, rows)
