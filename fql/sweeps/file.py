"""The file that says which runs a sweep has: tasks x agents x seeds x variants of settings."""

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_pipeline.data_dir import check_name
from data_pipeline.errors import DataError, first_line
from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import OWN_TASK, find_task, task_names
from fql.errors import FQLError
from fql.settings.bounds import check_bounds
from fql.settings.presets import default_config
from fql.settings.train_config import TrainConfig, settings_of_results, with_settings

READY = Path(__file__).parent / 'ready'
RECORD = 'sweep.toml'
"""The file's name in a sweep's folder."""
KEYS = ('tasks', 'agents', 'seeds', 'settings', 'task-settings', 'agent-settings', 'variants')
SET_BY_THE_SWEEP = ('task', 'seed', 'data-dir', 'online.from')


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: TASK/AGENT/seed-N, or TASK/AGENT/VARIANT/seed-N: its folder in that of the sweep.
        config: its settings.
        arguments: the settings as arguments of `fql train`.
    """

    name: str
    config: TrainConfig
    arguments: tuple[str, ...]


def ready_sweeps() -> list[str]:
    """Names of the sweeps that come with this package."""
    return sorted(path.stem for path in READY.glob('*.toml'))


def find_sweep(name: str) -> Path:
    """The file of a ready-made sweep, or the one of this path.

    Raises:
        FQLError: there is neither.
    """
    if name in ready_sweeps():
        return READY / f'{name}.toml'
    if not Path(name).is_file():
        raise FQLError(f'{name} is neither a file nor one of {", ".join(ready_sweeps())}')
    return Path(name)


def read_sweep(path: Path) -> list[SweepRun]:
    """The runs of a sweep, seed by seed, so that each setting has a result soon.

    Raises:
        FQLError: the file is not TOML, or a key, a task, an agent or a setting in it is wrong;
            names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:  # Also of numbers with too many digits.
        raise FQLError(f'{path} is not valid TOML: {first_line(error)}') from None
    try:
        return _runs(values)
    except FQLError as error:
        raise FQLError(f'{path}: {error}') from None


def _runs(values: Mapping[str, Any]) -> list[SweepRun]:
    if unknown := [key for key in values if key not in KEYS]:
        raise FQLError(f'unknown key {unknown[0]!r}; the keys are {", ".join(KEYS)}')
    tasks = _tasks(_list(values, 'tasks', str, ()))
    agents = _list(values, 'agents', str, ('fql',))
    seeds = _list(values, 'seeds', int, (0,))
    if unknown := [agent for agent in agents if agent not in AGENT_CONFIGS]:
        raise FQLError(f'unknown agent {unknown[0]!r}; the agents are {", ".join(AGENT_CONFIGS)}')
    by_task, by_agent = _tables(values, 'task-settings'), _tables(values, 'agent-settings')
    _check_used('task-settings', by_task, tasks)
    _check_used('agent-settings', by_agent, agents)
    variants = _variants(values)
    common = _settings(values.get('settings', {}), 'settings')
    of_seed_0 = [
        _run(
            task,
            agent,
            variant,
            common | _matching(by_task, task) | _matching(by_agent, agent) | settings,
        )
        for task in tasks
        for agent in agents
        for variant, settings in variants.items()
    ]
    _check_different(of_seed_0)
    return [_with_seed(run, seed) for seed in seeds for run in of_seed_0]


def _variants(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by variant; a single one without a name if the file has none."""
    tables = _tables(values, 'variants')
    for name in tables:
        try:
            check_name(name)
        except DataError as error:
            raise FQLError(f'variants: {error}') from None
        if name.startswith('seed-'):
            raise FQLError(f'variants: {name!r} is the name of a run')
    return tables or {'': {}}


def _check_different(runs: Iterable[SweepRun]) -> None:
    """Raise FQLError if two runs would have the same results."""
    names: dict[tuple[Any, ...], str] = {}
    for run in runs:
        other = names.setdefault(tuple(settings_of_results(run.config).items()), run.name)
        if other != run.name:
            raise FQLError(f'{other} and {run.name} have the same settings')


def _run(task: str, agent: str, variant: str, settings: Mapping[str, Any]) -> SweepRun:
    """The run without a seed yet."""
    changed = {name: value for name, value in settings.items() if name != 'preset'}
    preset = str(settings.get('preset', 'default'))
    try:
        config = default_config(find_task(task), agent, str(settings.get('env', '')), preset)
        config = with_settings(config, changed)
    except FQLError as error:
        raise FQLError(f'{task}, {agent}{f", {variant}" if variant else ""}: {error}') from None
    if config.save_interval == 0:
        raise FQLError('save-interval must not be 0: the runs of a sweep must be resumable')
    arguments = [text for name, value in settings.items() for text in _arguments(name, value)]
    name = '/'.join(part for part in (task, agent, variant) if part)
    return SweepRun(name, config, ('--task', task, '--agent', agent, *arguments))


def _with_seed(run: SweepRun, seed: int) -> SweepRun:
    config = dataclasses.replace(run.config, seed=seed)
    check_bounds(config)
    return SweepRun(f'{run.name}/seed-{seed}', config, (*run.arguments, '--seed', str(seed)))


def _arguments(name: str, value: Any) -> list[str]:
    """A setting as arguments of a command line."""
    if isinstance(value, bool):
        return [f'--{name}' if value else f'--no-{name}']
    if str(value).startswith('-'):
        return [f'--{name}={value}']
    return [f'--{name}', *map(str, value if isinstance(value, list) else [value])]


def _tasks(patterns: Iterable[str]) -> list[str]:
    """The tasks of names and of patterns, such as `cube-*-play-singletask-task?-v0`."""
    tasks: list[str] = []
    for pattern in patterns:
        if not set(pattern) & set('*?['):
            tasks.append(pattern if pattern == OWN_TASK else find_task(pattern).name)
            continue
        found = [name for name in task_names() if fnmatchcase(name, pattern)]
        if not found:
            raise FQLError(f'no task matches {pattern!r} (fql tasks lists all)')
        tasks += found
    _check_once('tasks', tasks)
    return tasks


def _list(values: Mapping[str, Any], key: str, kind: type, default: Iterable[Any]) -> list[Any]:
    found = values.get(key, list(default))
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise FQLError(f'{key} must be a list of {"whole numbers" if kind is int else "names"}')
    if not found:
        raise FQLError(f'{key} must not be empty')
    _check_once(key, found)
    return found


def _check_once(key: str, items: list[Any]) -> None:
    if twice := [item for item, count in Counter(items).items() if count > 1]:
        raise FQLError(f'{key}: {twice[0]} is named twice')


def _tables(values: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Settings by the name of their table, [KEY.NAME]."""
    tables = values.get(key, {})
    if not isinstance(tables, dict):
        raise FQLError(f'{key} must be tables of settings, [{key}.NAME]')
    return {name: _settings(table, f'{key}.{name}') for name, table in tables.items()}


def _settings(table: Any, place: str) -> dict[str, Any]:
    """Settings by flag: TOML reads `encoder.size = ...` as a table in a table."""
    if not isinstance(table, dict):
        raise FQLError(f'{place} must be a table of settings')
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= {f'{name}.{inner}': deeper for inner, deeper in value.items()}
        else:
            flat[name] = value
    if wrong := [name for name in flat if name in SET_BY_THE_SWEEP]:
        raise FQLError(f'{place}: {wrong[0]} cannot be set here')
    return flat


def _check_used(key: str, tables: Mapping[str, Any], names: list[str]) -> None:
    for pattern in tables:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise FQLError(f'{key}: the sweep has no {pattern!r}')


def _matching(tables: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The settings of all tables whose pattern the name fits, later ones over earlier ones."""
    settings: dict[str, Any] = {}
    for pattern, table in tables.items():
        if fnmatchcase(name, pattern):
            settings |= table
    return settings
