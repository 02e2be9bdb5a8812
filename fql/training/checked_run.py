"""The checks before a run of training, and the parts that it starts from."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.loader import check_batches
from data_pipeline.store.frame_store import FrameStore
from encoders.saved import load_encoder
from fql.augmentation import check_augmentation
from fql.compiled import abstract_state
from fql.devices import check_batch_size, make_mesh
from fql.errors import FQLError
from fql.learner import Learner, Params, TrainState
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import RunSpec, read_spec
from fql.runs.run_start import check_data, check_processes_agree, check_run_folder
from fql.runs.wandb_mirror import check_wandb
from fql.settings.run_arguments import Resume
from fql.settings.train_config import TrainConfig, validate_config
from fql.training.latent_cache import check_room, uses_cache
from fql.training.resource_limits import check_memory, check_open_files
from fql.training.training_data import (
    LabelledSplit,
    check_cameras,
    frame_shapes,
    load_training_data,
    loader_config,
    spec_of,
    store_of,
)


@dataclass(frozen=True)
class CheckedRun:
    """A run that can be started, as far as is known before anything is written.

    Attributes:
        config: its settings.
        folder: where it writes.
        mesh: the devices.
        store: the dataset.
        data: each split of it, with labels.
        spec: what determines its networks.
        learner: agent and optimiser.
        abstract: shapes and shardings of the training state.
        encoder: the parameters of the saved encoder that it starts from, if it does.
    """

    config: TrainConfig
    folder: RunFolder
    mesh: Mesh
    store: FrameStore
    data: dict[str, LabelledSplit]
    spec: RunSpec
    learner: Learner
    abstract: TrainState
    encoder: Params | None


def check_run(config: TrainConfig, path: Path, resume: Resume) -> CheckedRun:
    """Find out whether a run can be started, and from which parts; see `train`."""
    validate_config(config)
    check_wandb(config)
    check_open_files()
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh)
    folder = RunFolder(path.absolute())
    check_run_folder(
        folder,
        config,
        resume,
        lambda run: read_spec(run).config,
        'train',
        config.total_updates,
    )
    check_online_resume(folder, config)
    data = load_training_data(config)
    store = store_of(data)
    check_data(folder, store)
    check_augmentation(config.augmentation, frame_shapes(data['train'].split))
    spec = spec_of(data['train'], config)
    check_cameras(config.agent.encoder.cameras, data['train'].split)
    learner = make_learner(spec)
    abstract = abstract_state(learner, mesh, config.shard_params)
    encoder = None
    starts_fresh = not finished_steps(folder.checkpoints) and not config.online.source
    if config.agent.encoder.source and starts_fresh:
        encoder = read_starting_encoder(spec)
        if uses_cache(config):
            check_room(data, spec, encoder)
    check_batches(data['train'].split, loader_config(data['train'], config))
    rows = 0 if uses_cache(config) else config.batch_size // jax.process_count()
    check_memory(learner, abstract, rows * spec.observation_bytes)
    check_processes_agree(config, store)
    return CheckedRun(config, folder, mesh, store, data, spec, learner, abstract, encoder)


def check_online_resume(folder: RunFolder, config: TrainConfig) -> None:
    """Raise FQLError if --steps differs in a run whose online phase has begun."""
    if folder.replay.exists() and (stored := read_spec(folder).config.steps) != config.steps:
        raise FQLError(
            f'{folder.path}: its online phase began after {stored:,} offline updates; '
            f'--steps cannot be changed to {config.steps:,}'
        )


def read_starting_encoder(spec: RunSpec) -> Params:
    """The parameters of the saved encoder that a run starts from, NumPy arrays.

    Raises:
        FQLError, EncoderError: it cannot be that run's encoder.
    """
    if not spec.has_images:
        raise FQLError('observations are vectors, which need no encoder: leave out --encoder.from')
    encoder = spec.config.agent.encoder
    params = load_encoder(
        Path(encoder.source),
        encoder.size,
        spec.frame_shape,
        spec.config.frame_stack,
        encoder.cameras,
    )
    return jax.tree.map(np.asarray, params)
