"""The results of several runs, those that differ in a number only taken together."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fql.errors import FQLError
from fql.reports.measures import Measure, read_results
from fql.reports.plots import plot_results
from fql.reports.published import PublishedResult, published_result
from fql.reports.tables import format_table
from fql.training.run_folder import RunFolder, read_spec


@dataclass(frozen=True)
class Run:
    """The evaluations of a run.

    Attributes:
        measure: of its results.
        results: by step.
        published: what its agent has on its task in a paper, if that is known.
    """

    measure: Measure
    results: Mapping[int, float]
    published: PublishedResult | None


def compare_runs(paths: Iterable[Path], picture: Path) -> str:
    """Draws the curves of run folders; returns a table.

    Raises:
        FQLError: a folder has no evaluations, or they are measured differently.
    """
    groups = {name: list(map(read_run, paths)) for name, paths in group_runs(paths).items()}
    measures = {run.measure for runs in groups.values() for run in runs}
    if len(measures) > 1:
        names = ' and '.join(sorted(measure.name for measure in measures))
        raise FQLError(f'the runs are measured by {names}: compare those of one measure')
    (measure,) = measures
    plot_results(picture, measure, {name: common_steps(runs) for name, runs in groups.items()})
    return format_groups(measure, groups)


def group_runs(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Run folders by name without a number at its end, in the order given."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[re.sub(r'[-_.]?\d+$', '', path.name) or path.name].append(path)
    return dict(groups)


def read_run(path: Path) -> Run:
    """The evaluations of a run folder, and what is published beside them."""
    folder = RunFolder(path)
    measure, results = read_results(folder.eval_csv)
    if not results:
        raise FQLError(f'{path}: no run folder with evaluations')
    published = None
    with suppress(FQLError):  # Of another version: its evaluations can be read all the same.
        config = read_spec(folder).config
        published = published_result(config.agent.name, config.task)
    return Run(measure, results, published)


def common_steps(runs: list[Run]) -> tuple[list[int], np.ndarray]:
    """The steps at which all runs of a group were evaluated, and the results, (runs, steps)."""
    steps = sorted(set.intersection(*(set(run.results) for run in runs)))
    return steps, np.array([[run.results[step] for step in steps] for run in runs])


def format_groups(measure: Measure, groups: Mapping[str, list[Run]]) -> str:
    """A line for each group: its runs' last result, their mean over all evaluations, the paper's.

    Where any is known, a last column has the published ones, and lines below their sources.
    """
    rows = []
    sources: dict[str, None] = {}
    for name, runs in groups.items():
        last = [run.results[max(run.results)] for run in runs]
        mean = float(np.mean([np.mean(list(run.results.values())) for run in runs]))
        updates = sorted({max(run.results) for run in runs})
        published = {run.published for run in runs}
        sources |= {result.source: None for result in published if result}
        rows.append(
            [
                name,
                str(len(runs)),
                ', '.join(f'{n:,}' for n in updates),
                measure.text(float(np.mean(last))),
                f'{measure.text(min(last))} to {measure.text(max(last))}',
                measure.text(mean),
                # The runs of a group may be of several tasks.
                str(published.pop() or '') if len(published) == 1 else '',
            ]
        )
    header = ['', 'runs', 'updates', measure.name, 'of single runs', 'mean of all evaluations']
    header.append('published')
    if not sources:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return '\n'.join([format_table(header, rows), *(f'published: {name}' for name in sources)])
