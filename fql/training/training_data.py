"""A task's transitions, from the frame store to endless batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from data_pipeline.action_range import ActionRange, action_range_from_json
from data_pipeline.array_names import LABEL_ARRAYS
from data_pipeline.errors import DataError
from data_pipeline.loader import LoaderConfig, make_batches
from data_pipeline.observations import describe_observations, map_named
from data_pipeline.sample_layout import frame_offsets
from data_pipeline.store.frame_store import FrameStore, Split, open_store
from data_pipeline.store.labels import task_labels
from encoders.description import can_share
from fql.augmentation import augment_frames, check_augmentation
from fql.batch import Batch, batch_from_inputs
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.learner import split_seed
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec
from fql.settings.dataset_paths import dataset_path
from fql.settings.train_config import TrainConfig
from fql.training.verified_data import verify_once


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """A split of a dataset, labelled for a task.

    Attributes:
        split: observations and actions.
        rewards, masks: (n,) float32, one for each row of the split.
        action_range: what the actions were in the source, where they have been scaled.
        has_latents: the split has latents of the stacks that end in its rows, in place of frames
            (`fql.training.latent_cache`).
    """

    split: Split
    rewards: np.ndarray
    masks: np.ndarray
    action_range: ActionRange | None = None
    has_latents: bool = False


def open_dataset(dataset: str, data_dir: str) -> FrameStore:
    """Open the store of a prepared dataset.

    Raises:
        DataError: there is none; says how to make it.
    """
    return open_store(dataset_path(dataset, data_dir))


def load_training_data(config: TrainConfig) -> dict[str, LabelledSplit]:
    """Open the store of a run's dataset and label its splits, `train` and perhaps `val`.

    Raises:
        DataError: no store, or data that are not of the task's environment.
    """
    task = find_task(config.task)
    dataset = config.dataset or task.dataset
    store = open_dataset(dataset, config.data_dir)
    if not task.is_ogbench:
        return {
            name: own_labels(store, split, task.reward_offset)
            for name, split in store.splits.items()
        }
    scaled = scaled_from(store)
    return {
        name: LabelledSplit(split, *task_labels(store, name, task.label_env_id), scaled)
        for name, split in store.splits.items()
    }


def batch_of_update(config: TrainConfig, step: int) -> tuple[dict[str, Any], Batch, Sequence[int]]:
    """The loader's arrays for one update of a run, augmented; their batch; `frame_offsets`.

    Raises:
        DataError: no store, damaged data, or data that are not of the task's environment.
    """
    splits = load_training_data(config)
    verify_once(store_of(splits))
    data = splits['train']
    check_augmentation(config.augmentation, frame_shapes(data.split))
    arrays = next(training_batches(data, config, step))
    augment = jax.jit(augment_frames, static_argnames='config')
    frames = augment(arrays['inputs'], config.augmentation, split_seed(config.seed)[1], step)
    arrays = {**arrays, 'inputs': jax.tree.map(np.asarray, frames)}
    loader = loader_config(data, config)
    offsets = frame_offsets(loader.frame_stack, loader.horizon)
    return arrays, batch_from_inputs(arrays, loader.horizon), offsets


def frame_shapes(split: Split) -> Any:
    """The shape of a split's observations, not stacked; of several, by name."""
    return map_named(lambda array: array.shape[1:], split.observations)


def check_cameras(cameras: str, split: Split) -> None:
    """Raise FQLError if `cameras` is shared and images are not several of one shape."""
    if cameras == 'shared' and not can_share(frame_shapes(split)):
        dtypes = map_named(lambda array: array.dtype, split.observations)
        raise FQLError(
            '--encoder.cameras shared is for several images of one shape; observations are '
            f'{describe_observations(frame_shapes(split), dtypes)}'
        )


def store_of(data: Mapping[str, LabelledSplit]) -> FrameStore:
    """The store of these splits, which have frames."""
    return open_store(data['train'].split.path.parent)


def own_labels(store: FrameStore, split: Split, reward_offset: float = 0.0) -> LabelledSplit:
    """A split with the rewards and masks that its source has.

    Args:
        reward_offset: added to the rewards.

    Raises:
        DataError: it has none.
    """
    if not split.labels:
        raise DataError(
            f'{store.path}: split {split.name} has no rewards and masks; prepare it from a file '
            'that has them, or from an RLDS dataset with --reward-key'
        )
    rewards, masks = (np.array(split.labels[name]) for name in LABEL_ARRAYS)
    return LabelledSplit(split, rewards + np.float32(reward_offset), masks, scaled_from(store))


def scaled_from(store: FrameStore) -> ActionRange | None:
    """The range that a store's actions were scaled from, if they were."""
    return action_range_from_json(store.manifest.sources['train'].get('action_range'))


def training_batches(
    data: LabelledSplit, config: TrainConfig, start_step: int
) -> Iterator[dict[str, Any]]:
    """This process's part of the batches of a run from update `start_step` on.

    See `data_pipeline.loader.make_batches`.
    """
    loader = loader_config(data, config)
    return make_batches(data.split, data.rewards, data.masks, loader, start_step)


def loader_config(data: LabelledSplit, config: TrainConfig) -> LoaderConfig:
    """The loader's settings, in this process, for a run on these data."""
    agent = agent_of(spec_of(data, config))
    return LoaderConfig(
        batch_size=config.batch_size,
        frame_stack=1 if data.has_latents else config.frame_stack,
        horizon=agent.horizon,
        discount=config.agent.discount,
        next_actions='next_actions' in agent.needs,
        shift_probability=config.shift_probability,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def spec_of(data: LabelledSplit, config: TrainConfig) -> RunSpec:
    """The specification of a run of `config` on these data."""
    shapes = frame_shapes(data.split)
    return RunSpec(
        config=config,
        observation_shape=map_named(
            lambda shape: (*shape[:-1], shape[-1] * config.frame_stack), shapes
        ),
        observation_dtype=map_named(lambda array: str(array.dtype), data.split.observations),
        action_dim=data.split.actions.shape[1],
        action_range=data.action_range,
    )
