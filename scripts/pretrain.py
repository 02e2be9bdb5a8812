"""`fql pretrain`: starts or continues a pretraining, which ends with a saved encoder."""

import dataclasses

from data_pipeline.data_dir import resolve_data_dir
from fql.pretraining.pretrain import pretrain
from fql.runs.run_start import connect_processes
from fql.settings.run_arguments import choose_folder
from scripts.pretrain_args import Pretrain


def run(args: Pretrain) -> int:
    """Start or resume a pretraining; return the exit code."""
    connect_processes(args.processes, args.run_dir, args.resume)
    # Stored as an absolute path, so that the run can be resumed from any folder.
    data_dir = str(resolve_data_dir(args.config.data_dir))
    config = dataclasses.replace(args.config, data_dir=data_dir)
    name = f'pretrain-{config.dataset}-{config.objective}'
    folder = choose_folder(args.run_dir, args.resume, name)
    return pretrain(config, *folder, verify_data=args.verify_data)
