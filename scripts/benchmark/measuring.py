"""What benchmarks share: a task's settings, a trainer, and the program in its own process."""

import dataclasses
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.store.verification import Verification
from fql.command import PROGRAM
from fql.compiled import abstract_state
from fql.devices import make_mesh
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.runs.checkpoints import CheckpointWriter
from fql.runs.interruption import Interruption
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of, loaded_fields, make_learner, train_step_of, validation_of
from fql.runs.run_spec import RunSpec
from fql.settings.presets import default_config
from fql.settings.train_config import TrainConfig
from fql.training.loop import Trainer

ROOT = Path(__file__).parents[2]


def task_config(task: str, data_dir: str, **changes: Any) -> TrainConfig:
    """The settings of a task, with the changes."""
    config = default_config(find_task(task))
    return dataclasses.replace(config, data_dir=str(resolve_data_dir(data_dir)), **changes)


def run_fql(*arguments: str, environment: Mapping[str, str] = os.environ) -> None:
    """Run the program silently in a separate process.

    Raises:
        FQLError: it failed; with the last line that it printed.
    """
    command = [*PROGRAM, *arguments]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        raise FQLError(f'fql {arguments[0]} failed: {lines[-1]}')


def make_trainer(
    spec: RunSpec, folder: Path, writer: CheckpointWriter, verification: Verification
) -> Trainer:
    """A trainer that logs and saves nothing."""
    mesh, config, learner = make_mesh(), spec.config, make_learner(spec)
    return Trainer(
        schedule=config,
        mesh=mesh,
        folder=RunFolder(folder),
        fields=loaded_fields(agent_of(spec)),
        train_step=train_step_of(spec, learner, abstract_state(learner, mesh)),
        validate=validation_of(spec, learner),
        val_batches=None,
        evaluate=lambda state: None,
        metadata={},
        writer=writer,
        verification=verification,
        train_log=None,
        timing_log=None,
        interruption=Interruption(),
        resume_command='',
    )
