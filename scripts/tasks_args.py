"""The arguments of `fql tasks`."""

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Tasks:
    """List the tasks, their data and their published settings.

    fql tasks
    fql tasks visual-cube
    fql tasks 'visual-*-task1-v0' --agent iql

    A line for each agent whose settings for the task were published; `not tuned` where there are
    none.
    """

    pattern: tyro.conf.Positional[str] = ''
    """Part of a name, or a pattern with * and ?."""
    agent: str = ''
    """Only this agent's settings."""
