"""`fql train`: starts or continues a run."""

import dataclasses
import os
from pathlib import Path

from data_pipeline.data_dir import resolve_data_dir
from fql.errors import FQLError
from fql.output import print_notice
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_spec
from fql.runs.run_start import connect_processes
from fql.settings.run_arguments import choose_folder
from fql.training.train import train
from scripts.train_args import Train


def run(args: Train) -> int:
    """Start or resume a run; return the exit code."""
    connect_processes(args.processes, args.run_dir, args.resume)
    # Stored as absolute paths, so that the run can be resumed from any folder.
    data_dir = str(resolve_data_dir(args.config.data_dir))
    agent = args.config.agent
    if agent.encoder.source:
        source = str(Path(os.path.expanduser(agent.encoder.source)).absolute())
        agent = dataclasses.replace(
            agent, encoder=dataclasses.replace(agent.encoder, source=source)
        )
    config = dataclasses.replace(args.config, data_dir=data_dir, agent=agent)
    if args.source is not None:
        config = dataclasses.replace(config, steps=offline_steps(args))
    folder = choose_folder(args.run_dir, args.resume, config.task)
    return train(config, *folder, verify_data=args.verify_data)


def offline_steps(args: Train) -> int:
    """The update of the run --from after which the online phase begins, or has begun."""
    settings_from = args.run_dir if args.is_begun else args.source
    assert settings_from is not None
    assert args.source is not None
    steps = args.config.steps
    if steps != read_spec(RunFolder(settings_from)).config.steps:
        raise FQLError('--steps cannot be set with --from; choose a checkpoint with --step')
    if not args.is_begun:
        return CheckpointReader(RunFolder(args.source).checkpoints).find(args.step, print_notice)
    if args.step not in (None, steps):
        raise FQLError(f'{args.run_dir} started from update {steps:,}: --step cannot be changed')
    return steps
