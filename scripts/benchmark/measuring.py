"""What benchmarks share: a task's settings, and the program in a process of its own."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.data_dir import resolve_data_dir
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.training.config import TrainConfig
from fql.training.presets import default_config

FQL = (sys.executable, '-m', 'scripts.main')
"""The program, to be run in a process of its own from `ROOT`."""

ROOT = Path(__file__).parents[2]


def task_config(task: str, data_dir: str, **changes: Any) -> TrainConfig:
    """The settings of a task, but for the changes."""
    config = default_config(find_task(task))
    return dataclasses.replace(config, data_dir=str(resolve_data_dir(data_dir)), **changes)


def run_fql(*arguments: str, environment: Mapping[str, str] = os.environ) -> None:
    """Runs the program in a process of its own, silently.

    Raises:
        FQLError: it failed; with the last line that it printed.
    """
    command = [*FQL, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise FQLError(f'fql {arguments[0]} failed: {lines[-1]}')
