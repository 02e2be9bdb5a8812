"""`fql train`: starts or continues a run."""

import dataclasses
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from data_pipeline.data_dir import resolve_data_dir
from fql.agent import abstract_state, initial_state
from fql.augmentation import check_augmentation
from fql.checkpointing import (
    CheckpointWriter,
    count_parameters,
    finished_steps,
    restore_newest,
)
from fql.config import TrainConfig, config_to_dict, differing_fields, validate_config
from fql.devices import check_batch_size, make_mesh, wait_for_all_processes
from fql.errors import FQLError
from fql.interruption import Interruption
from fql.metrics_log import MetricsLog, Mirror
from fql.run_folder import RunFolder, RunSpec, read_spec, write_spec
from fql.run_lock import lock_run
from fql.tasks import PAPER_HYPERPARAMETERS, QUICKSTART_TASK, find_task
from fql.train_state import TrainState
from scripts.arguments import Train
from scripts.rollouts import recorded_steps, start_workers
from scripts.training_data import (
    LabelledSplit,
    load_training_data,
    run_spec,
    training_batches,
)
from scripts.training_loop import Trainer, is_due

Resume = Literal['never', 'auto', 'always']


def run(args: Train) -> int:
    """Starts or resumes a run; returns the exit code."""
    if args.coordinator:
        connect_processes(args)
    # Stored as an absolute path, so that the run can be resumed from any folder.
    data_dir = str(resolve_data_dir(args.config.data_dir))
    config = dataclasses.replace(args.config, data_dir=data_dir)
    if args.resume is None:
        name = f'{config.task}-{datetime.now():%Y%m%d-%H%M%S}'
        return train(config, args.run_dir or Path('runs') / name, resume='never')
    if args.resume == Path('auto'):
        if args.run_dir is None:
            raise FQLError('--resume auto needs --run-dir')
        return train(config, args.run_dir, resume='auto')
    if args.run_dir not in (None, args.resume):
        raise FQLError('--resume names the run folder; leave --run-dir out')
    return train(config, args.resume, resume='always')


def connect_processes(args: Train) -> None:
    """Makes this process one of several that train together."""
    if args.coordinator == 'auto':
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)


def train(config: TrainConfig, path: Path, resume: Resume) -> int:
    """Trains to `config.steps` in the run folder `path`.

    Args:
        resume: continue the run there ('always'), refuse if there is one ('never'), or continue
            it if there is one ('auto').

    Returns:
        0 when done, `EXIT_CODE` after SIGINT or SIGTERM, when the state was saved.

    Raises:
        FQLError, DataError: what the user asked for cannot be done; nothing was written then.
    """
    validate_config(config)
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh)
    folder = RunFolder(path.absolute())
    check_run_folder(folder, config, resume)
    data = load_training_data(config)
    check_augmentation(config.augmentation, data['train'].split.observations.shape[1:])
    spec = run_spec(data['train'], config)
    is_main = jax.process_index() == 0
    part = {'process_index': jax.process_index(), 'process_count': jax.process_count()}
    with ExitStack() as stack:
        # Fails before anything is written if the batch does not fit the data.
        training_batches(data['train'], config, 0, **part)
        workers = None
        if config.eval_interval and is_main:
            workers = stack.enter_context(
                start_workers(spec, config, config.eval_episodes, config.eval_workers)
            )
        if is_main:
            folder.path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_run(folder.lock))
            write_spec(folder, spec)
        wait_for_all_processes('run folder')
        state, notices = restore_newest(
            folder.checkpoints, abstract_state(spec, mesh), folder.damaged
        )
        state = initial_state(spec, mesh) if state is None else state
        start = int(state.step)
        is_evaluation_missing = (
            start > 0
            and is_due(start, config.eval_interval, config.steps)
            and start not in recorded_steps(folder.eval_csv)
        )
        wait_for_all_processes('state')
        writer = stack.enter_context(
            CheckpointWriter(folder.checkpoints, config.keep_latest, config.keep_interval)
        )
        train_log = eval_log = None
        if is_main:
            print('\n'.join([*notices, start_summary(spec, data, state, folder)]), flush=True)
            mirror = wandb_mirror(config, folder) if config.wandb_project else None
            train_log = stack.enter_context(
                MetricsLog(folder.train_csv, folder.train_tensorboard, start, mirror)
            )
            if config.eval_interval:
                eval_log = stack.enter_context(
                    MetricsLog(folder.eval_csv, folder.eval_tensorboard, start, mirror)
                )
        val_batches = None
        if 'val' in data and len(data['val'].split.valid_rows) >= config.batch_size:
            done = start // config.log_interval if config.log_interval else 0
            val_batches = training_batches(data['val'], config, done, **part)
        trainer = Trainer(
            spec=spec,
            mesh=mesh,
            folder=folder,
            workers=workers,
            writer=writer,
            train_log=train_log,
            eval_log=eval_log,
            interruption=stack.enter_context(Interruption()),
        )
        return trainer.train(
            state,
            training_batches(data['train'], config, start, **part),
            val_batches,
            is_evaluation_missing,
        )


def check_run_folder(folder: RunFolder, config: TrainConfig, resume: Resume) -> None:
    """Raises FQLError if a run there would be overwritten, or continued with other settings."""
    is_new = not folder.path.exists() or not any(folder.path.iterdir())
    if resume == 'never' and not is_new:
        raise FQLError(
            f'{folder.path} exists; continue it with fql train --resume {folder.path}, '
            'or choose another --run-dir'
        )
    if resume == 'never' or (resume == 'auto' and is_new):
        return
    if differences := differing_fields(read_spec(folder).config, config):
        raise FQLError(f'{folder.path} was made with other settings: {"; ".join(differences)}')
    latest = max(finished_steps(folder.checkpoints), default=0)
    if latest > config.steps:
        raise FQLError(
            f'{folder.path} is at step {latest:,} already, past --steps {config.steps:,}'
        )


def start_summary(
    spec: RunSpec, data: dict[str, LabelledSplit], state: TrainState, folder: RunFolder
) -> str:
    """What is about to happen, on one screen."""
    config, agent = spec.config, spec.config.agent
    split = data['train'].split
    completed = np.mean(data['train'].masks[split.valid_rows] == 0)
    size = 'x'.join(str(n) for n in spec.observation_shape)
    counts = {
        name: count_parameters(tree)
        for name, tree in state.params.items()
        if count_parameters(tree)
    }
    env = find_task(config.task).env
    is_given = env in PAPER_HYPERPARAMETERS or config.task == QUICKSTART_TASK
    hint = '' if is_given else '  (the paper gives none for this task: tune it)'
    lines = {
        'task': config.task,
        'dataset': (
            f'{split.path.parent}: {len(split.valid_rows):,} transitions in '
            f'{split.terminals.sum():,} trajectories, task complete in {completed:.2%}'
        ),
        'observations': f'{size} {spec.observation_dtype}, actions {spec.action_dim}',
        'parameters': (
            f'{sum(counts.values()):,} ('
            + ', '.join(f'{name} {count:,}' for name, count in counts.items())
            + ')'
        ),
        'encoder': f'{agent.encoder}, {agent.encoder_sharing}' if spec.images else 'none',
        'training': (
            f'updates {int(state.step):,} to {config.steps:,}, batch {config.batch_size}, '
            f'seed {config.seed}, alpha {agent.alpha:g}{hint}'
        ),
        'devices': (
            f'{jax.device_count()} ({jax.devices()[0].device_kind}) '
            f'in {jax.process_count()} process(es)'
        ),
        'run folder': str(folder.path),
    }
    return '\n'.join(f'{name:>13}: {text}' for name, text in lines.items())


def wandb_mirror(config: TrainConfig, folder: RunFolder) -> Mirror:
    """Sends rows of metrics to Weights & Biases, under the run folder's name.

    Raises:
        FQLError: the package is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise FQLError("--wandb-project needs: pip install 'fql-pixels[wandb]'") from None
    run = wandb.init(
        project=config.wandb_project,
        id=folder.path.name,
        dir=folder.path,
        config=config_to_dict(config),
        resume='allow',
    )

    def mirror(step: int, metrics: object) -> None:
        run.log(metrics, step=step)

    return mirror
