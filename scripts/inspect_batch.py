"""`fql inspect batch`: the arrays and a picture of the batch that one update sees."""

import dataclasses

import numpy as np

from data_pipeline.files import replacing
from data_pipeline.observations import flattened
from data_pipeline.store.frame_store import open_store
from fql.agents.configs import FQLConfig
from fql.envs.tasks import find_task
from fql.reports.plots import plot_batch
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_spec
from fql.runs.run_start import check_data
from fql.settings.dataset_paths import task_dataset_path
from fql.settings.presets import default_config
from fql.settings.train_config import TrainConfig, validate_config
from fql.training.training_data import batch_of_update
from scripts.inspect_args import InspectBatch


def run(args: InspectBatch) -> None:
    """Make the batch and write what was asked for."""
    config = config_of(args)
    if args.run is not None:
        path = task_dataset_path(config.task, config.dataset, config.data_dir)
        check_data(RunFolder(args.run), open_store(path))
    arrays, batch, offsets = batch_of_update(config, args.step - 1)  # Updates made before it.
    fields = {name: value for name, value in batch._asdict().items() if value is not None}
    provenance = {'indices': arrays['indices'], 'shifts': arrays['shifts']}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as temporary, temporary.open('wb') as file:
            np.savez(file, allow_pickle=False, **flattened({**fields, **provenance}))
        print(f'wrote {args.out}')
    if args.png is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        title = f'update {args.step}, seed {config.seed}: {config.task}'
        plot_batch(args.png, arrays, offsets, title)
        print(f'wrote {args.png}')


def config_of(args: InspectBatch) -> TrainConfig:
    """The settings of the named run, or those of FQL for the named task."""
    if args.run is not None:
        config = read_spec(RunFolder(args.run)).config
        return dataclasses.replace(config, data_dir=args.data_dir or config.data_dir)
    config = default_config(find_task(args.task))
    settings = {'data_dir': args.data_dir, **args.settings}
    agent = config.agent
    if 'horizon' in settings:
        assert isinstance(agent, FQLConfig)
        agent = dataclasses.replace(agent, horizon=settings.pop('horizon'))
    config = dataclasses.replace(config, agent=agent, **settings)
    validate_config(config)
    return config
