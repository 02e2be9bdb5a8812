"""Evaluations of runs, read from their folders; runs that differ only in the seed form a group."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fql.envs.tasks import OWN_TASK
from fql.errors import FQLError
from fql.reports.published import PublishedResult, published_result
from fql.runs.measures import RETURN, Measure, read_results
from fql.runs.run_folder import RunFolder, check_is_run
from fql.runs.run_spec import read_spec
from fql.settings.train_config import setting_text, settings_of_results

PROTOCOL_EVALUATIONS = 3
"""On OGBench, the FQL paper reports the mean of this many last evaluations."""
NOT_COMPARED = {'seed', 'task', 'agent'}
"""Settings that are named elsewhere than among those in which groups differ."""


@dataclass(frozen=True)
class Run:
    """A run and its evaluations.

    Attributes:
        folder: of the run.
        settings: those that results depend on, by flag; `agent` is its name.
        measure: of its results.
        results: by step.
    """

    folder: RunFolder
    settings: Mapping[str, Any]
    measure: Measure
    results: Mapping[int, float]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings['seed'])


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    Attributes:
        task: its name, of `task_names`.
        name: the agent, and what distinguishes the group from others of its task and agent.
        runs: by seed, those whose last evaluation is the latest.
        behind: the others, which do not count.
        note: how the runs of the task are compared, where that is not by their own measure.
    """

    task: str
    name: str
    runs: Sequence[Run]
    behind: Sequence[Run] = ()
    note: str = ''

    @property
    def agent(self) -> str:
        """The agent of all runs."""
        return str(self.runs[0].settings['agent'])

    @property
    def measure(self) -> Measure:
        """The measure of all results."""
        return self.runs[0].measure

    @cached_property
    def steps(self) -> list[int]:
        """The steps at which all runs were evaluated."""
        return sorted(set.intersection(*(set(run.results) for run in self.runs)))

    @cached_property
    def results(self) -> np.ndarray:
        """Results at `steps`, (runs, steps)."""
        return np.array([[run.results[step] for step in self.steps] for run in self.runs])

    @property
    def last(self) -> np.ndarray:
        """Results of the last evaluation that all runs have, (runs,)."""
        return self.results[:, -1]

    @property
    def by_protocol(self) -> np.ndarray | None:
        """The paper's number of each run: the mean of the last three evaluations, (runs,).

        None where there are fewer.
        """
        if len(self.steps) < PROTOCOL_EVALUATIONS:
            return None
        return self.results[:, -PROTOCOL_EVALUATIONS:].mean(axis=1)

    @property
    def published(self) -> PublishedResult | None:
        """What a paper reports of the agent on the task; None where returns are compared."""
        if self.measure == RETURN:
            return None
        is_online = self.runs[0].settings['online-steps'] > 0
        return published_result(self.agent, self.task, online=is_online)


@dataclass(frozen=True)
class MissingRun:
    """A run that is not in the numbers.

    Attributes:
        task, agent, seed: as they are printed; empty where they are not known.
        why: what it lacks.
    """

    task: str
    agent: str
    seed: str
    why: str

    def __str__(self) -> str:
        name = f'{self.task}, {self.agent}, seed {self.seed}: ' if self.task else ''
        return f'{name}{self.why}'


def read_run(path: Path) -> Run:
    """A run folder.

    Raises:
        FQLError: it is no run folder, or has no evaluations.
    """
    folder = RunFolder(path)
    check_is_run(path)
    if folder.pretrain_spec.exists():
        raise FQLError(f'{path}: a pretraining, which has no evaluations')
    settings = settings_of_results(read_spec(folder).config)
    measure, results = read_results(folder.eval_csv)
    if not results:
        raise FQLError(f'{path}: a run folder without evaluations')
    return Run(folder, settings, measure, results)


def missing_run(path: Path, why: str) -> MissingRun:
    """A folder that `read_run` cannot read, named by its settings if these can be read."""
    try:
        settings = settings_of_results(read_spec(RunFolder(path)).config)
    except FQLError:
        return MissingRun('', '', '', why)
    (task,) = task_names([settings])
    return MissingRun(task, settings['agent'], str(settings['seed']), why)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs by task and settings, in the order given.

    Where the runs of a task have different measures, all of them are compared by their returns.

    Raises:
        FQLError: two runs are the same, or there is no return to compare by.
    """
    runs = list(runs)
    tasks = task_names([run.settings for run in runs])
    measures: dict[str, dict[Measure, None]] = {}
    for task, run in zip(tasks, runs, strict=True):
        measures.setdefault(task, {})[run.measure] = None
    together: dict[tuple[Any, ...], list[Run]] = {}
    for task, run in zip(tasks, runs, strict=True):
        key = (task, run.settings['agent'], *_compared(run.settings).items())
        together.setdefault(key, []).append(run if len(measures[task]) == 1 else _by_return(run))
    by_task: dict[tuple[str, str], list[list[Run]]] = {}
    for (task, agent, *_), members in together.items():
        members.sort(key=lambda run: run.seed)
        for one, other in itertools.pairwise(members):
            if one.seed == other.seed:
                raise FQLError(
                    f'{one.folder.path} and {other.folder.path} have the same settings and seed'
                )
        by_task.setdefault((task, agent), []).append(members)
    return [
        _group(task, name, members, _note(measures[task]))
        for (task, agent), alike in by_task.items()
        for name, members in zip(_names(agent, alike), alike, strict=True)
    ]


def _by_return(run: Run) -> Run:
    measure, results = read_results(run.folder.eval_csv, RETURN)
    return dataclasses.replace(run, measure=measure, results=results)


def _note(measures: Iterable[Measure]) -> str:
    names = [measure.name for measure in measures]
    if len(names) == 1:
        return ''
    return f'runs are measured by {" or by ".join(names)}: their returns are compared'


def task_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the tasks of runs with these settings.

    Each dataset of task own is a task of its own; so is each environment that it is evaluated in.
    """
    envs: dict[str, set[str]] = {}
    for of_run in settings:
        if of_run['task'] == OWN_TASK:
            envs.setdefault(of_run['dataset'], set()).add(of_run['env'])
    return [
        f'{OWN_TASK}: {of_run["dataset"]}'
        + (f' in {of_run["env"]}' if len(envs[of_run['dataset']]) > 1 else '')
        if of_run['task'] == OWN_TASK
        else str(of_run['task'])
        for of_run in settings
    ]


def _group(task: str, name: str, runs: Sequence[Run], note: str) -> Group:
    last = max(max(run.results) for run in runs)
    return Group(
        task,
        name,
        [run for run in runs if max(run.results) == last],
        [run for run in runs if max(run.results) < last],
        note,
    )


def varying_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Settings in which groups differ, by flag: the value of each group, None where it has none."""
    flags = {flag: None for group in groups for flag in _compared(group.runs[0].settings)}
    values = {flag: [group.runs[0].settings.get(flag) for group in groups] for flag in flags}
    return {flag: found for flag, found in values.items() if any(v != found[0] for v in found)}


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the runs of a group share.

    Folders to start from lose the run's seed at the end of their names, since each seed may have
    its own encoder.
    """
    seed = re.compile(rf'(?<!\d)[-_.]?0*{settings["seed"]}(?=/|$)')
    return {
        flag: seed.sub('', str(value)) if flag.endswith('.from') else value
        for flag, value in settings.items()
        if flag not in NOT_COMPARED
    }


def _names(agent: str, alike: Sequence[Sequence[Run]]) -> list[str]:
    """The agent's name, with the settings in which the groups of one task and agent differ."""
    varying = varying_settings([Group('', '', members) for members in alike])
    texts = [
        ', '.join(f'{flag} {setting_text(values[i])}' for flag, values in varying.items())
        for i in range(len(alike))
    ]
    return [f'{agent} ({text})' if text else agent for text in texts]


def is_on_one_scale(groups: Sequence[Group]) -> bool:
    """Whether results of different tasks can be averaged: success or D4RL's score throughout."""
    return len({group.measure for group in groups}) == 1 and groups[0].measure.name != 'return'
