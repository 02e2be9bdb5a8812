"""Runs as one self-contained HTML page: no script, no network, pictures inside."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path

import numpy as np

from fql.envs.tasks import OWN_TASK, find_task
from fql.reports.published import PublishedResult
from fql.reports.report_figures import colours, learning_curves, strip, strip_ends
from fql.reports.run_results import (
    NOT_COMPARED,
    PROTOCOL_EVALUATIONS,
    Group,
    MissingRun,
    is_on_one_scale,
    varying_settings,
)
from fql.reports.statistics import Estimate, estimate, improvement, interquartile_mean, mean
from fql.runs.measures import SUCCESS, Measure
from fql.settings.presets import default_config
from fql.settings.train_config import setting_text, settings_of_results

STYLE = Path(__file__).with_name('report.css')
VIDEO_BYTES, ALL_VIDEO_BYTES = 3_000_000, 40_000_000
"""Limits for one embedded video, and for all of them together."""


def html_report(title: str, groups: Sequence[Group], missing: Sequence[MissingRun]) -> str:
    """The page.

    Args:
        groups: all groups to compare.
        missing: the runs that are not in the numbers, of `missing_runs`.
    """
    names = list(dict.fromkeys(group.name for group in groups))
    colour_of = colours(names)
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        by_task.setdefault(group.task, []).append(group)
    videos = _Videos()
    sections = [
        overview(by_task, colour_of),
        datasets_section(by_task, colour_of),
        *(task_section(task, members, colour_of, videos) for task, members in by_task.items()),
        improvement_section(by_task, colour_of),
        settings_section(groups),
        missing_section(missing, by_task),
        method_section(groups),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f'<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding="utf-8")}</style>\n'
        f'</head>\n<body>\n<main>\n{header(title, groups, by_task, missing)}\n'
        f'{"".join(sections)}\n</main>\n</body>\n</html>\n'
    )


def header(
    title: str,
    groups: Sequence[Group],
    by_task: Mapping[str, Sequence[Group]],
    missing: Sequence[MissingRun],
) -> str:
    """The page's subject, and links to the tasks where there are several."""
    runs = sum(len(group.runs) for group in groups)
    facts = [
        f'{_count(runs, "run")} compared',
        _count(len(by_task), 'task'),
        _count(len({group.agent for group in groups}), 'agent'),
        f'{date.today():%d %B %Y}',
    ]
    if missing:
        facts.insert(-1, f'{_count(len(missing), "run")} not finished')
    links = ''
    if len(by_task) > 1:
        items = ''.join(f'<a href="#{_anchor(task)}">{escape(task)}</a>' for task in by_task)
        links = f'<nav aria-label="Tasks">{items}</nav>'
    return (
        f'<header><h1>{escape(title)}</h1><p class="soft">{" · ".join(facts)}</p>{links}</header>'
    )


def overview(by_task: Mapping[str, Sequence[Group]], colour_of: Mapping[str, str]) -> str:
    """All tasks together, where there are several on one scale."""
    groups = [group for members in by_task.values() for group in members]
    shared = shared_results(by_task)
    if len(by_task) < 2 or not shared or not is_on_one_scale(groups):
        return ''
    measure = groups[0].measure
    papers = {name: published_mean(by_task, name) for name in shared}
    has_published = any(papers.values())
    rows = [
        [
            _name(name, colour_of),
            str(sum(map(len, strata))),
            interval_text(measure.text, estimate(mean, strata)),
            interval_text(measure.text, estimate(interquartile_mean, strata)),
            *([papers[name] or '-'] if has_published else []),
        ]
        for name, strata in shared.items()
    ]
    heads = ['', 'runs', f'mean {measure.name}', 'interquartile mean']
    heads += ['paper, mean'] if has_published else []
    missing = [name for name in colour_of if name not in shared]
    note = (
        f'<p class="soft">Not on every task: {escape(", ".join(missing))}.</p>' if missing else ''
    )
    return f'<section><h2>All {len(by_task)} tasks</h2>{_table(heads, rows)}{note}</section>'


def datasets_section(by_task: Mapping[str, Sequence[Group]], colour_of: Mapping[str, str]) -> str:
    """Means over the tasks of each dataset, as in the FQL paper's Table 2."""
    groups = [group for members in by_task.values() for group in members]
    by_dataset: dict[str, dict[str, Sequence[Group]]] = {}
    for task, members in by_task.items():
        dataset = str(members[0].runs[0].settings['dataset'])
        by_dataset.setdefault(dataset, {})[task] = members
    several = {dataset: tasks for dataset, tasks in by_dataset.items() if len(tasks) > 1}
    if len(by_dataset) < 2 or not several or not is_on_one_scale(groups):
        return ''
    measure = groups[0].measure
    rows = []
    for dataset, tasks in several.items():
        for name, strata in shared_results(tasks).items():
            found = interval_text(measure.text, estimate(mean, strata))
            paper = published_mean(tasks, name) or '-'
            tasks_text = f'{escape(dataset)} <small>({len(tasks)} tasks)</small>'
            rows.append([tasks_text, _name(name, colour_of), found, paper])
    heads = ['', 'agent', f'mean {measure.name}', 'paper, mean']
    return f'<section><h2>Tasks of one dataset together</h2>{_table(heads, rows)}</section>'


def published_mean(by_task: Mapping[str, Sequence[Group]], name: str) -> str:
    """The mean of a paper's results over tasks; empty where one of them is not known."""
    groups = [group for members in by_task.values() for group in members if group.name == name]
    known = [group.published for group in groups if group.published]
    if len(known) < len(groups):
        return ''
    return f'{np.mean([result.mean for result in known]):.1f}{known[0].unit}'


def improvement_section(
    by_task: Mapping[str, Sequence[Group]], colour_of: Mapping[str, str]
) -> str:
    """How often each agent is better than another."""
    shared = shared_results(by_task)
    if len(shared) < 2:
        return ''
    rows = [
        [
            _name(ours, colour_of),
            *(
                ''
                if ours == other
                else interval_text('{:.2f}'.format, improvement(shared[ours], shared[other]))
                for other in shared
            ),
        ]
        for ours in shared
    ]
    table = _table(['', *(f'than {escape(name)}' for name in shared)], rows, '')
    return (
        f'<section><h2>Probability of a better result</h2><div class="scroll">{table}</div>'
        '<p class="soft">Of two runs drawn at random, one of the agent of the row and one of that '
        'of the column; ties count as half. In brackets, 95 % intervals.</p></section>'
    )


def shared_results(by_task: Mapping[str, Sequence[Group]]) -> dict[str, list[np.ndarray]]:
    """Last results by name, (runs,) for each task, of the names that every task has."""
    tables = [{group.name: group.last for group in members} for members in by_task.values()]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: [table[name] for table in tables] for name in names}


def task_section(
    task: str, groups: Sequence[Group], colour_of: Mapping[str, str], videos: '_Videos'
) -> str:
    """A task's table, learning curves and rollouts."""
    measure, ends = groups[0].measure, strip_ends(groups)
    has_published = any(group.published for group in groups)
    heads = ['', 'seeds', 'updates', 'each seed', f'mean {measure.name}', 'interquartile mean']
    heads += [f'mean of last {PROTOCOL_EVALUATIONS}', *(['paper'] if has_published else [])]
    rows = []
    for group in groups:
        average = estimate(mean, [group.last])
        published = group.published
        row = [
            _name(group.name, colour_of),
            str(len(group.runs)),
            f'{group.steps[-1]:,}',
            strip(
                measure,
                group.last,
                average,
                published_value(published, measure),
                ends,
                colour_of[group.name],
            ),
            interval_text(measure.text, average),
            interval_text(measure.text, estimate(interquartile_mean, [group.last])),
            spread_text(measure, group.by_protocol),
        ]
        rows.append(row + ([published_text(published)] if has_published else []))
    note = f'<p class="soft">{escape(groups[0].note)}</p>' if groups[0].note else ''
    return (
        f'<section id="{_anchor(task)}"><h2>{escape(task)}</h2>{note}{_table(heads, rows)}'
        f'<div class="pictures"><figure class="curve">{learning_curves(groups, colour_of)}'
        f'<figcaption>{_legend(groups, colour_of)}</figcaption></figure>'
        f'{videos.of(groups)}</div></section>'
    )


def _legend(groups: Sequence[Group], colour_of: Mapping[str, str]) -> str:
    keys = ' &ensp; '.join(_name(group.name, colour_of) for group in groups)
    return f'{keys}<br>Mean over seeds with its 95 % interval; thin, the seeds.'


class _Videos:
    """Videos as parts of the page, as long as there is room."""

    def __init__(self) -> None:
        self._room = ALL_VIDEO_BYTES

    def of(self, groups: Sequence[Group]) -> str:
        """The newest video of the first run of each group that has one."""
        figures = []
        for group in groups:
            for run in group.runs:
                found = newest_video(run.folder.videos)
                if found is not None:
                    title = f'{group.name}, seed {run.seed}, update {int(found.stem):,}'
                    figures.append(self._figure(found, title))
                    break
        kind = 'films' if len(figures) < 3 else 'films many'
        return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ''

    def _figure(self, path: Path, title: str) -> str:
        content = path.read_bytes()
        if not content.startswith(b'GIF8') or len(content) > min(VIDEO_BYTES, self._room):
            return f'<p class="soft">{escape(title)}: <code>{escape(str(path))}</code></p>'
        self._room -= len(content)
        data = base64.b64encode(content).decode()
        name = escape(f'Rollouts: {title}')
        return (
            f'<figure><img alt="{name}" src="data:image/gif;base64,{data}">'
            f'<figcaption>{escape(title)}</figcaption></figure>'
        )


def newest_video(folder: Path) -> Path | None:
    """The recorded evaluation of the highest update."""
    found = [path for path in folder.glob('*.gif') if path.stem.isdecimal() and path.is_file()]
    return max(found, key=lambda path: int(path.stem), default=None)


def settings_section(groups: Sequence[Group]) -> str:
    """Settings in which the groups differ from each other, and from the published ones."""
    tasks = {group.task for group in groups}
    alike: dict[tuple[str, str, str], list[str]] = {}
    for group in groups:
        text = '<br>'.join(
            f'<code>--{escape(flag)}</code> {escape(ours)} <small>(default: '
            f'{escape(default)})</small>'
            for flag, (ours, default) in differences_from_defaults(group).items()
        )
        seeds = ', '.join(str(run.seed) for run in group.runs)
        alike.setdefault((group.name, seeds, text or 'none'), []).append(group.task)
    rows = [
        [escape(name), seeds, text, _task_names(members, len(tasks))]
        for (name, seeds, text), members in alike.items()
    ]
    heads = ['agent', 'seeds', 'changed settings', 'tasks']
    note = 'Changed are those that are not the published ones, or the defaults.'
    parts = [f'<h2>Settings</h2>{_table(heads, rows)}<p class="soft">{note}</p>']
    varying = varying_settings(groups)
    if varying:
        cells = [
            [
                escape(group.task),
                escape(group.name),
                *(escape(setting_text(found[i])) for found in varying.values()),
            ]
            for i, group in enumerate(groups)
        ]
        table = _table(['task', 'agent', *(f'--{escape(flag)}' for flag in varying)], cells, '')
        parts.append(
            '<details><summary>All settings in which these runs differ</summary>'
            f'<div class="scroll">{table}</div></details>'
        )
    folders = ''.join(
        f'<code>{escape(str(run.folder.path))}</code><br>' for group in groups for run in group.runs
    )
    parts.append(f'<details><summary>Run folders</summary>{folders}</details>')
    return f'<section>{"".join(parts)}</section>'


def differences_from_defaults(group: Group) -> dict[str, tuple[str, str]]:
    """By flag, the value in these runs and the default of the task and agent, if they differ."""
    ours = group.runs[0].settings
    task = find_task(ours['task'])
    defaults = settings_of_results(default_config(task, group.agent, ours['env']))
    if task.name == OWN_TASK:  # The name of the group's task says it.
        defaults['dataset'] = ours['dataset']
    return {
        flag: (setting_text(value), setting_text(defaults[flag]))
        for flag, value in ours.items()
        if flag not in NOT_COMPARED and value != defaults[flag]
    }


def missing_runs(groups: Sequence[Group], not_run: Sequence[MissingRun]) -> list[MissingRun]:
    """The runs that are not in the numbers: `not_run`, and those behind others of their group."""
    behind = [
        MissingRun(
            group.task,
            group.name,
            str(run.seed),
            f'left out of the tables: evaluated up to update {max(run.results):,} only',
        )
        for group in groups
        for run in group.behind
    ]
    return [*not_run, *behind]


def missing_section(missing: Sequence[MissingRun], by_task: Iterable[str]) -> str:
    """What is not in the numbers above; runs that lack the same share a line."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for run in missing:
        seeds.setdefault((run.task, run.agent, run.why), []).append(run.seed)
    tasks: dict[tuple[str, str, str], list[str]] = {}
    for (task, agent, why), numbers in seeds.items():
        tasks.setdefault((agent, ', '.join(numbers), why), []).append(task)
    if not tasks:
        return ''
    total = len({*by_task, *(run.task for run in missing if run.task)})
    rows = [
        [escape(agent), escape(numbers), escape(why), _task_names(names, total)]
        for (agent, numbers, why), names in tasks.items()
    ]
    table = _table(['agent', 'seeds', 'state', 'tasks'], rows)
    return f'<section><h2>Not run, or not to the end</h2>{table}</section>'


def method_section(groups: Sequence[Group]) -> str:
    """How the numbers were made."""
    sources = {group.published.source for group in groups if group.published}
    paper = ''.join(f'<p>Paper (diamonds): {escape(source)}.</p>' for source in sorted(sources))
    episodes = sorted({run.settings['eval-episodes'] for group in groups for run in group.runs})
    counts = ' or '.join(map(str, episodes))
    return (
        '<section><h2>How to read this</h2>'
        f'<p>The result of a run is its last evaluation, of {counts} episodes. '
        'The mean and the interquartile mean (of the middle half of the runs) are over seeds; in '
        'brackets, 95 % intervals of a stratified bootstrap (percentiles, '
        '<code>scipy.stats.bootstrap</code>), which say how much another set of seeds would change '
        'the number, and with few seeds are too narrow. '
        f'“Mean of last {PROTOCOL_EVALUATIONS}” is the protocol of the FQL paper on OGBench: of '
        f'each run the mean of its last {PROTOCOL_EVALUATIONS} evaluations, ± the standard '
        f'deviation over seeds. On D4RL the paper takes the last evaluation alone.</p>{paper}'
        '</section>'
    )


def interval_text(text: Callable[[float], str], found: Estimate) -> str:
    """A value with its interval, each as `text` writes it, as HTML."""
    value = text(found.value)
    if np.isnan(found.low):
        return value
    return f'{value} <small>[{text(found.low)}, {text(found.high)}]</small>'


def spread_text(measure: Measure, values: np.ndarray | None) -> str:
    """Mean and standard deviation over seeds, as HTML."""
    if values is None:
        return '-'
    text = measure.text(float(values.mean()))
    return (
        f'{text} <small>± {measure.text(float(values.std()))}</small>' if len(values) > 1 else text
    )


def published_text(published: PublishedResult | None) -> str:
    """A paper's mean and standard deviation, as HTML."""
    if published is None:
        return '-'
    unit, spread = published.unit, published.spread
    return f'{published.mean:g}{unit}' + (f' <small>{spread}{unit}</small>' if spread else '')


def published_value(published: PublishedResult | None, measure: Measure) -> float | None:
    """A paper's mean in the unit of our results."""
    if published is None:
        return None
    return published.mean / 100 if measure == SUCCESS else published.mean


def _task_names(names: Sequence[str], total: int) -> str:
    return f'all {total}' if len(names) == total > 1 else '<br>'.join(map(escape, names))


def _anchor(task: str) -> str:
    """The id of a task's section, which must not have spaces."""
    return escape(task.replace(' ', '-'))


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _name(name: str, colour_of: Mapping[str, str]) -> str:
    return f'<span class="key" style="background:{colour_of[name]}"></span>{escape(name)}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = 'results') -> str:
    """A table of HTML cells; one of `results` becomes a list of cards on narrow screens."""
    head = ''.join(f'<th scope="col">{text}</th>' for text in heads)
    body = ''.join(
        '<tr>'
        + ''.join(
            f'<td{" class=name" if i == 0 else ""} data-label="{head}"><span>{cell}</span></td>'
            for i, (head, cell) in enumerate(zip(heads, row, strict=True))
        )
        + '</tr>'
        for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
