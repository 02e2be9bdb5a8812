"""`fql tasks`: the tasks, and what is published for them."""

import dataclasses
from collections.abc import Iterator
from fnmatch import fnmatchcase

from fql.agents.configs import AGENT_CONFIGS, AgentConfig
from fql.envs.tasks import Task, find_task, task_names
from fql.errors import FQLError
from fql.output import format_table
from fql.settings.presets import default_config, has_preset
from fql.settings.published_settings import ONLINE_PRESETS, PRESETS, Preset
from scripts.tasks_args import Tasks

HEADER = ('task', 'dataset', 'observations', 'agent', 'settings', 'source')
TUNED = ('alpha', 'alpha_actor', 'alpha_critic', 'num_samples', 'horizon', 'discount', 'q_agg')
"""The settings to show, of those that an agent has."""


def run(args: Tasks) -> None:
    """Print a table.

    Raises:
        FQLError: no such task or agent.
    """
    if args.agent and args.agent not in AGENT_CONFIGS:
        raise FQLError(f'unknown agent {args.agent!r}; the agents are {", ".join(AGENT_CONFIGS)}')
    pattern = args.pattern if set(args.pattern) & set('*?[') else f'*{args.pattern}*'
    names = [name for name in task_names() if fnmatchcase(name, pattern)]
    if not names:
        raise FQLError(f'no task matches {args.pattern!r}; fql tasks lists all')
    agents = [args.agent] if args.agent else list(AGENT_CONFIGS)
    rows = [row for name in names for row in task_rows(find_task(name), agents)]
    print(format_table(HEADER, rows, left_columns=len(HEADER)))


def task_rows(task: Task, agents: list[str]) -> Iterator[tuple[str, ...]]:
    """A row for each agent with published settings, or one that says that there is none."""
    head = (task.name, task.dataset, 'images' if task.has_images else 'states')
    found = False
    for agent in agents:
        offline = PRESETS.get((agent, task.dataset))
        online = ONLINE_PRESETS.get((agent, task.dataset))
        shown = [
            f'{phase} {settings_text(config_of(agent, preset))}'.strip()
            for phase, preset in (('', offline), ('online:', online))
            if preset is not None and (phase == '' or preset != offline)
        ]
        if preset := offline or online:
            yield (*head, agent, '; '.join(shown), preset.source)
            found = True
    if not found and 'fql' in agents and has_preset('fql', task):
        yield (*head, 'fql', settings_text(default_config(task).agent), 'docs/steadiness.md')
    elif not found:
        yield (*head, agents[0] if len(agents) == 1 else '-', 'not tuned', '')


def config_of(agent: str, preset: Preset) -> AgentConfig:
    """The agent's settings with a preset."""
    return dataclasses.replace(AGENT_CONFIGS[agent](), **preset.settings)


def settings_text(config: AgentConfig) -> str:
    """The settings to show; the horizon only if it is not 1."""
    values = {name: getattr(config, name) for name in TUNED if hasattr(config, name)}
    return ', '.join(
        f'{name.replace("_", "-")} ' + (f'{value:g}' if type(value) is float else str(value))
        for name, value in values.items()
        if (name, value) != ('horizon', 1)
    )
