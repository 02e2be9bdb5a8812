"""A pretraining, from the checks before it to the saved encoder it ends with."""

import shlex
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from data_pipeline.loader import LoaderConfig, check_windows, make_windows
from data_pipeline.observations import describe_observations, map_named
from data_pipeline.store.frame_store import FrameStore, Split
from data_pipeline.store.verification import Verification, VerifyMode
from encoders.cameras import abstract_observations
from encoders.description import SavedEncoder, read_encoder
from encoders.pretraining import OBJECTIVES
from encoders.saved import load_encoder
from fql.augmentation import check_augmentation
from fql.command import command
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.devices import check_batch_size, local_copy, make_mesh, wait_for_all_processes
from fql.errors import FQLError
from fql.learner import Learner, Params, TrainState, count_parameters
from fql.output import format_summary
from fql.pretraining.pretrain_config import (
    PretrainConfig,
    PretrainSpec,
    read_pretrain_spec,
    validate_pretrain_config,
    write_pretrain_spec,
)
from fql.pretraining.pretrain_learner import (
    WINDOW_FIELDS,
    make_pretraining_learner,
    pretraining_validation,
    window_preparer,
)
from fql.pretraining.saved_encoders import save_encoder_folder
from fql.runs.checkpoints import CheckpointWriter, rows_written
from fql.runs.interruption import Interruption, ended_with_others
from fql.runs.run_checkpoints import restore_newest
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_identity, versions
from fql.runs.run_start import (
    Logs,
    check_data,
    check_processes_agree,
    check_run_folder,
    claimed_folder,
    open_logs,
    write_description,
)
from fql.settings.run_arguments import Resume
from fql.training.loop import Batches, Trainer, rows_logged
from fql.training.resource_limits import check_memory, check_open_files
from fql.training.training_data import check_cameras, frame_shapes, open_dataset


def pretrain(
    config: PretrainConfig, path: Path, resume: Resume, verify_data: VerifyMode = 'once'
) -> int:
    """Pretrain to `config.steps` in the run folder `path`, then write the encoder there.

    Args:
        resume: see `fql.settings.run_arguments.choose_folder`.
        verify_data: as in `fql.training.train.train`.

    Returns:
        0 when done, `EXIT_CODE` after SIGINT or SIGTERM, when the state was saved.

    Raises:
        FQLError, DataError: what the user asked for cannot be done; nothing was written then.
        DamagedError: as in `fql.training.train.train`.
        EncoderError: the encoder that an extended run is to replace cannot be read.
    """
    run = check_pretraining(config, path, resume)
    folder, spec, store = run.folder, run.spec, run.store
    is_main = jax.process_index() == 0
    with ExitStack() as stack:
        verification = stack.enter_context(Verification(store.path, verify_data))
        verification.add(store.stored_arrays)
        stack.enter_context(claimed_folder(folder))
        state, notices = restore_newest(folder, folder.pretrain_spec, run.abstract)
        state = initial_state(run.learner, config.seed, run.mesh) if state is None else state
        write_description(folder, store, lambda: write_pretrain_spec(folder, spec))
        start = int(state.step)
        wait_for_all_processes('state')
        writer = stack.enter_context(
            CheckpointWriter(
                folder.checkpoints,
                config.keep_latest,
                config.keep_interval,
                identity=read_identity(folder.pretrain_spec),
            )
        )
        logs, rows = Logs(), rows_written(folder.checkpoints, start)
        if is_main:
            print(
                '\n'.join([*notices, pretraining_start_summary(spec, store, state, folder)]),
                flush=True,
            )
            logs = open_logs(stack, folder, start, rows)
        trainer = Trainer(
            schedule=config,
            mesh=run.mesh,
            folder=folder,
            fields=WINDOW_FIELDS,
            train_step=make_train_step(
                run.learner,
                window_preparer(spec),
                run.abstract,
                config.updates_per_call,
            ),
            validate=pretraining_validation(spec),
            val_batches=validation_windows(store, config, start),
            evaluate=lambda state: None,
            metadata={'versions': versions()},
            writer=writer,
            verification=verification,
            train_log=logs.updates,
            timing_log=logs.timing,
            interruption=stack.enter_context(Interruption()),
            resume_command=command('pretrain', '--resume', folder.path),
        )
        stack.enter_context(ended_with_others())
        began = time.monotonic()
        batches = make_windows(store.splits['train'], window_loader_config(config), start)
        state, code = trainer.train(state, batches, is_evaluation_missing=False)
        if code == 0:
            encoder = local_copy(state.params['encoder'], run.mesh)
            if is_main:
                write_final_encoder(folder, spec, encoder)
                print(
                    pretraining_end_summary(
                        folder, config, config.steps - start, time.monotonic() - began
                    )
                )
    return code


@dataclass(frozen=True)
class CheckedPretraining:
    """A pretraining that can be started, as far as is known before anything is written.

    Attributes:
        folder: where it writes.
        mesh: the devices.
        store: the dataset.
        spec: its settings, and what else determines its networks.
        learner: objective and optimiser.
        abstract: shapes and shardings of the training state.
    """

    folder: RunFolder
    mesh: Mesh
    store: FrameStore
    spec: PretrainSpec
    learner: Learner
    abstract: TrainState


def check_pretraining(config: PretrainConfig, path: Path, resume: Resume) -> CheckedPretraining:
    """Find out whether a pretraining can be started, and from which parts; see `pretrain`."""
    validate_pretrain_config(config)
    check_open_files()
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh)
    folder = RunFolder(path.absolute())
    check_run_folder(
        folder,
        config,
        resume,
        lambda run: read_pretrain_spec(run).config,
        'pretrain',
        config.steps,
    )
    store = open_dataset(config.dataset, config.data_dir)
    check_data(folder, store)
    train = store.splits['train']
    check_windows(train, window_loader_config(config))
    check_augmentation(config.augmentation, frame_shapes(train))
    check_cameras(config.cameras, train)
    check_objective(config, train)
    spec = PretrainSpec(config, frame_shapes(train), train.actions.shape[1])
    learner = make_pretraining_learner(spec)
    abstract = abstract_state(learner, mesh)
    rows = config.batch_size // jax.process_count()
    observations = jax.tree.leaves(abstract_observations(spec.stack_shape, rows))
    check_memory(learner, abstract, sum(x.size * x.dtype.itemsize for x in observations))
    check_processes_agree(config, store)
    return CheckedPretraining(folder, mesh, store, spec, learner, abstract)


def validation_windows(store: FrameStore, config: PretrainConfig, start: int) -> Batches | None:
    """The windows of the `val` split from update `start` on; None where it has too few."""
    if 'val' not in store.splits or store.splits['val'].num_transitions < config.batch_size:
        return None
    return make_windows(
        store.splits['val'], window_loader_config(config), rows_logged(config, start)
    )


def check_objective(config: PretrainConfig, split: Split) -> None:
    """Raise FQLError if the objective cannot take such observations."""
    if config.objective == 'reconstruction' and isinstance(split.observations, Mapping):
        others = ', '.join(name for name in OBJECTIVES if name != 'reconstruction')
        raise FQLError(
            'objective reconstruction is for observations of one image; these are '
            f'{", ".join(split.observations)}: take another objective, {others}'
        )


def window_loader_config(config: PretrainConfig) -> LoaderConfig:
    """The loader's settings for a run's windows, in this process."""
    return LoaderConfig(
        batch_size=config.batch_size,
        frame_stack=config.frame_stack,
        horizon=config.horizon,
        shift_probability=config.shift_probability,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def describe_encoder(
    spec: PretrainSpec, step: int, package_versions: Mapping[str, str]
) -> SavedEncoder:
    """The description of a run's encoder after `step` updates."""
    return SavedEncoder(
        encoder=spec.config.encoder,
        image_shape=spec.image_shape,
        frame_stack=spec.config.frame_stack,
        objective=spec.config.objective,
        dataset=spec.config.dataset,
        step=step,
        versions=package_versions,
        cameras=spec.config.cameras,
    )


def write_final_encoder(folder: RunFolder, spec: PretrainSpec, encoder: Params) -> None:
    """Write the encoder of a finished run into its folder.

    A run that was extended replaces the one it had.

    Raises:
        EncoderError: the one that is there is damaged.
    """
    replace, config = folder.encoder.exists(), spec.config
    if replace and read_encoder(folder.encoder).step == config.steps:
        shapes, stack = spec.image_shape, config.frame_stack
        load_encoder(folder.encoder, config.encoder, shapes, stack, config.cameras)
        return
    saved = describe_encoder(spec, spec.config.steps, versions())
    save_encoder_folder(folder.encoder, encoder, saved, replace=replace)


def pretraining_start_summary(
    spec: PretrainSpec, store: FrameStore, state: TrainState, folder: RunFolder
) -> str:
    """What the run is about to do, on one screen."""
    config, split = spec.config, store.splits['train']
    dtypes = map_named(lambda array: array.dtype, split.observations)
    lines = {
        'objective': f'{config.objective}, offsets up to {config.horizon}',
        'observations': describe_observations(spec.stack_shape, dtypes),
        'dataset': (
            f'{store.path}: {split.num_transitions:,} transitions in '
            f'{split.terminals.sum():,} trajectories'
        ),
        'encoder': f'{config.encoder}, {count_parameters(state.params["encoder"]):,} parameters',
        'heads': f'{count_parameters(state.params["heads"]):,} parameters',
        'training': (
            f'updates {int(state.step):,} to {config.steps:,}, batch {config.batch_size}, '
            f'seed {config.seed}'
        ),
        'devices': f'{jax.device_count()} ({jax.devices()[0].device_kind})',
        'run folder': str(folder.path),
    }
    if 'val' not in store.splits:
        lines['validation'] = 'none: the dataset has no validation split'
    return format_summary(lines)


def pretraining_end_summary(
    folder: RunFolder, config: PretrainConfig, updates: int, seconds: float
) -> str:
    """What was done, and how to use it."""
    lines = {
        'done': f'{updates:,} updates in {seconds / 60:.1f} min',
        'encoder': str(folder.encoder),
        'look at it': command('probe', folder.encoder),
        'use it': (
            f'{command("train")} --task ... --encoder {config.encoder} '
            + ('--encoder.cameras shared ' if config.cameras == 'shared' else '')
            + f'--frame-stack {config.frame_stack} --encoder.from '
            f'{shlex.quote(str(folder.encoder))} --encoder.mode frozen --shift-probability 0'
        ),
    }
    return format_summary(lines)
