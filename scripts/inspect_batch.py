"""`fql inspect batch`: the arrays and a picture of the batch that one update sees."""

import dataclasses
from typing import cast

import numpy as np

from data_pipeline.files import replacing
from data_pipeline.observations import flattened
from fql.agents.configs import FQLConfig
from fql.batch import batch_from_inputs
from fql.envs.tasks import find_task
from fql.reports.plots import plot_batch
from fql.training.config import validate_config
from fql.training.data import batch_of_update
from fql.training.presets import default_config
from scripts.inspect_args import InspectBatch

CONFIG_FIELDS = (
    *('seed', 'dataset', 'data_dir', 'batch_size', 'frame_stack', 'shift_probability'),
    'augmentation',
)


def run(args: InspectBatch) -> None:
    """Make the batch and write what was asked for."""
    asked = {name: getattr(args, name) for name in CONFIG_FIELDS}
    config = dataclasses.replace(
        default_config(find_task(args.task)),
        **{name: value for name, value in asked.items() if value is not None},
    )
    agent = cast(FQLConfig, config.agent)
    if args.horizon is not None:
        agent = dataclasses.replace(agent, horizon=args.horizon)
        config = dataclasses.replace(config, agent=agent)
    validate_config(config)
    arrays = batch_of_update(config, args.step)
    fields = batch_from_inputs(arrays, agent.horizon)._asdict()
    batch = {name: value for name, value in fields.items() if value is not None}
    provenance = {'indices': arrays['indices'], 'shifts': arrays['shifts']}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as temporary, temporary.open('wb') as file:
            np.savez(file, allow_pickle=False, **flattened({**batch, **provenance}))
        print(f'wrote {args.out}')
    if args.png is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        plot_batch(args.png, arrays, f'update {args.step}, seed {config.seed}: {config.task}')
        print(f'wrote {args.png}')
