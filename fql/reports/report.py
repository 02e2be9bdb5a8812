"""A report of runs and of sweeps: a text table, and the page of `html_report`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.files import make_folder, write_text
from fql.errors import FQLError
from fql.output import format_table
from fql.reports.html_report import html_report, missing_runs
from fql.reports.run_results import (
    PROTOCOL_EVALUATIONS,
    Group,
    MissingRun,
    Run,
    group_runs,
    missing_run,
    read_run,
    task_names,
)
from fql.reports.statistics import estimate, interquartile_mean, mean
from fql.settings.train_config import settings_of_results
from fql.sweeps.file import read_sweep
from fql.sweeps.folder import SweepFolder, failure, state_of, updates_made


def report(paths: Sequence[Path], out: Path) -> str:
    """Write the page of run folders and sweeps; return the table.

    A folder that cannot be read is named on the page and does not hide the others.

    Raises:
        FQLError: there is no run with evaluations, or runs cannot be compared.
    """
    runs: list[Run] = []
    not_run: list[MissingRun] = []
    for path in paths:
        if SweepFolder(path).record.exists():
            found, unfinished = sweep_runs(SweepFolder(path))
            runs += found
            not_run += unfinished
            continue
        try:
            runs.append(read_run(path))
        except FQLError as error:
            not_run.append(missing_run(path, str(error)))
    if not runs:
        why = next((f'; {run}' for run in not_run), '')
        raise FQLError(f'{_first_three(map(str, paths))}: no run with evaluations{why}')
    groups = group_runs(runs)
    title = _first_three(path.absolute().name for path in paths)
    make_folder(out.parent)
    missing = missing_runs(groups, not_run)
    write_text(out, html_report(title, groups, missing))
    note = f'\nnot finished, or left out: {len(missing)} (listed on the page)' if missing else ''
    return format_groups(groups) + note


def _first_three(names: Iterable[str]) -> str:
    listed = list(names)
    others = len(listed) - 3
    return ', '.join(listed[:3]) + (f' and {others} more' if others > 0 else '')


def sweep_runs(folder: SweepFolder) -> tuple[list[Run], list[MissingRun]]:
    """The runs of a sweep that have evaluations, and those that are unfinished.

    One that cannot be read is named among these and does not hide the others.
    """
    found, missing = [], []
    for run in read_sweep(folder.record):
        state = state_of(folder, run)
        path = folder.run(run)
        fault = failure(folder, run) if state == 'failed' else ''
        if path.eval_csv.exists() and path.spec.exists():
            try:
                found.append(read_run(path.path))
            except FQLError as error:
                fault = str(error)
        if state != 'done' or fault:
            made = f'{updates_made(path):,} of {run.config.total_updates:,} updates'
            (task,) = task_names([settings_of_results(run.config)])
            agent = '/'.join(run.name.split('/')[1:-1])  # And the variant.
            why = ': '.join(part for part in (f'{state}, {made}', fault) if part)
            missing.append(MissingRun(task, agent, str(run.config.seed), why))
    return found, missing


def format_groups(groups: Sequence[Group]) -> str:
    """A line for each task and agent: its runs' last results, their means, the paper's.

    If any published results are known, a last column has them, and lines below have the sources.
    """
    tasks = list(dict.fromkeys(group.task for group in groups))
    lines = []
    for task in tasks:
        members = [group for group in groups if group.task == task]
        measure = members[0].measure
        rows = []
        for group in members:
            average, by_protocol = estimate(mean, [group.last]), group.by_protocol
            interval = f'{measure.text(average.low)} to {measure.text(average.high)}'
            rows.append(
                [
                    f'  {group.name}',
                    str(len(group.runs)),
                    f'{group.steps[-1]:,}',
                    measure.text(average.value),
                    interval if len(group.runs) > 1 else '-',
                    measure.text(estimate(interquartile_mean, [group.last]).value),
                    '-' if by_protocol is None else measure.text(float(by_protocol.mean())),
                    str(group.published or '-'),
                ]
            )
        last = f'last {PROTOCOL_EVALUATIONS}'
        header = ['', 'seeds', 'updates', measure.name, '95 % interval', 'IQM', last, 'paper']
        if not any(group.published for group in members):
            header, rows = header[:-1], [row[:-1] for row in rows]
        note = members[0].note
        lines += [f'{task} ({note})' if note else task, format_table(header, rows)]
    sources = {group.published.source: None for group in groups if group.published}
    return '\n'.join([*lines, *(f'paper: {source}' for source in sources)])
