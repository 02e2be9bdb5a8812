"""Latents of a frozen encoder, computed once for all rows of the data and kept beside them.

A split with latents is one whose observations are vectors: the loader draws the same rows as it
would of the images, and the update, given vectors, skips the encoder (`fql.encoding`).
"""

import dataclasses
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import DataError
from data_pipeline.files import locked
from data_pipeline.observations import map_named
from data_pipeline.store.frame_store import Split
from data_pipeline.store.latents import (
    LatentWriter,
    latent_folder,
    latent_recipe,
    latent_split,
    make_latent_folder,
)
from encoders.cameras import latent_size
from encoders.leaves import tree_digest
from fql.batch import stack_frames
from fql.devices import AXIS, compiler_options, local_mesh
from fql.errors import FQLError
from fql.learner import Params
from fql.runs.progress import count_from, progress_bar
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig
from fql.training.training_data import LabelledSplit, store_of

AHEAD = 2
"""Blocks queued on the devices while the host reads the next and writes the last."""

EncodeBlock = Callable[[Params, Any, jax.Array], jax.Array]
"""(encoder, frames, stacks) -> latents (b, d); see `make_encode_block`."""


def uses_cache(config: TrainConfig) -> bool:
    """Whether a run reads latents in place of images."""
    return (
        config.agent.encoder.mode == 'frozen'
        and config.latent_cache != 'off'
        and not config.augmentation.is_on
        and config.shift_probability == 0
    )


def cache_place(data: dict[str, LabelledSplit], spec: RunSpec, encoder: Params) -> tuple[Path, str]:
    """The folder of the latents of these data, which need not exist yet, and their recipe."""
    config = spec.config
    encoding = {
        'encoder': config.agent.encoder.size,
        'digest': tree_digest(encoder),
        'precision': config.agent.precision,
        'frame_stack': config.frame_stack,
        'dtype': config.latent_cache,
    }
    store = store_of(data)
    recipe = latent_recipe(store, encoding)
    return latent_folder(store, recipe), recipe


def check_room(data: dict[str, LabelledSplit], spec: RunSpec, encoder: Params) -> None:
    """Raise DataError if the disk has no room for the missing latents."""
    folder, _ = cache_place(data, spec, encoder)
    needed = cache_bytes(data, spec)
    there = sum(file.stat().st_size for file in folder.glob('*/observations.npy'))
    free = shutil.disk_usage(data['train'].split.path).free
    if free < needed - there:
        raise DataError(
            f'{folder}: latents need {needed - there:,} bytes of disk, {free:,} are free; '
            'use --latent-cache float16 (half of float32) or off'
        )


def cache_bytes(data: dict[str, LabelledSplit], spec: RunSpec) -> int:
    """Size of the latents of all rows."""
    config = spec.config
    rows = sum(len(labelled.split.terminals) for labelled in data.values())
    itemsize = np.dtype(config.latent_cache).itemsize
    return rows * latent_width(spec) * itemsize


def describe_cache(data: dict[str, LabelledSplit], spec: RunSpec, encoder: Params | None) -> str:
    """The source of the latents of a run with a frozen encoder.

    Args:
        encoder: its parameters, if the run reads latents.
    """
    config = spec.config
    if config.latent_cache == 'off':
        return 'computed in every update, as latent-cache is off'
    if encoder is None:
        return 'computed in every update, as images are changed at random'
    folder, _ = cache_place(data, spec, encoder)
    return f'{config.latent_cache}, {cache_bytes(data, spec) / 1e6:,.0f} MB in {folder}'


def latent_width(spec: RunSpec) -> int:
    """Size of the encoder's latents."""
    encoder = agent_of(spec).encoder
    assert encoder is not None
    return latent_size(encoder, spec.observation_shape)


def cached_data(
    data: dict[str, LabelledSplit],
    spec: RunSpec,
    encoder: Params,
    before: Callable[[], None] = lambda: None,
) -> dict[str, LabelledSplit]:
    """The splits with latents in place of frames; missing latents are computed.

    Of several processes, the first one computes, with its own devices, and the others wait;
    where their disks are not shared, each computes its own.

    Args:
        data: images and labels.
        encoder: parameters of the frozen encoder, on this process's devices or the host.
        before: called before a split's latents are computed.

    Raises:
        DataError: the disk has no room, or they cannot be written.
        FQLError: a latent is not finite in the cache's type.
    """
    config = spec.config
    folder, recipe = cache_place(data, spec, encoder)
    width, dtype = latent_width(spec), config.latent_cache

    def stored() -> dict[str, Split | None]:
        return {name: latent_split(folder, each.split, width, dtype) for name, each in data.items()}

    if None in stored().values():
        check_room(data, spec, encoder)
        mesh = local_mesh()
        encode = make_encode_block(spec, mesh)
        try:
            make_latent_folder(folder, recipe)
            with locked(folder / 'lock', f'computes the latents in {folder}', wait=True):
                for name in [name for name, split in stored().items() if split is None]:
                    before()
                    split = data[name].split
                    shape = (len(split.terminals), width)
                    with LatentWriter(folder / name, shape, dtype) as writer:
                        write_latents(writer, split, config, encode, encoder, mesh)
        except OSError as error:
            raise DataError(
                f'{error.filename or folder}: latents cannot be written: '
                f'{error.strerror or error}; --latent-cache off does without'
            ) from error
    cached = {}
    for name, latents in stored().items():
        assert latents is not None
        cached[name] = dataclasses.replace(data[name], split=latents, has_latents=True)
    return cached


def write_latents(
    writer: LatentWriter,
    split: Split,
    config: TrainConfig,
    encode: EncodeBlock,
    encoder: Params,
    mesh: Mesh,
) -> None:
    """Compute and write the rows that `writer` still lacks.

    Devices, disk and host work at the same time: the next blocks are given to the devices before
    the last one is waited for.

    Args:
        encode: of `make_encode_block`, for this mesh.
    """
    encoder = jax.device_put(encoder, NamedSharding(mesh, PartitionSpec()))
    rows, first, begun = len(split.terminals), split.first_rows, writer.rows
    pending: deque[tuple[jax.Array, int]] = deque()
    with progress_bar(f'latents of {split.name}', 'row', rows, initial=writer.rows) as bar:

        def write_next() -> None:
            latents, count = pending.popleft()
            block = np.asarray(latents)[:count]
            if not np.isfinite(block).all():
                raise FQLError(
                    f"the encoder's latents are not finite in {config.latent_cache}; start another "
                    'run with --latent-cache float32, or with another encoder'
                )
            is_first = writer.rows == begun
            writer.append(block)
            if is_first:  # It was compiled before.
                count_from(bar, writer.rows)
            else:
                bar.update(count)

        for start in range(writer.rows, rows, config.batch_size):
            end = min(start + config.batch_size, rows)
            arrays = put_block(*read_block(split, first, start, end, config), mesh)
            pending.append((encode(encoder, *arrays), end - start))
            if len(pending) > AHEAD:
                write_next()
        while pending:
            write_next()


def read_block(
    split: Split, first: np.ndarray, start: int, end: int, config: TrainConfig
) -> tuple[Any, np.ndarray]:
    """The frames that the stacks of rows `start` to `end` are made of, each once.

    Args:
        first: the first row of each row's trajectory.

    Returns:
        frames: (min(n, batch_size + frame_stack - 1), h, w, c), a part of the split; of several
            arrays, by name.
        stacks: (batch_size, frame_stack) int32, places in `frames`, oldest first; the last row's
            fill up a short block.
    """
    length = min(len(first), config.batch_size + config.frame_stack - 1)
    begin = min(max(start - config.frame_stack + 1, 0), len(first) - length)
    rows = np.arange(start, end)
    stacks = np.maximum(rows[:, None] + np.arange(1 - config.frame_stack, 1), first[rows, None])
    frames = map_named(lambda array: array[begin : begin + length], split.observations)
    return frames, pad_rows((stacks - begin).astype(np.int32), config.batch_size)


def pad_rows(array: np.ndarray, length: int) -> np.ndarray:
    """The array with its last row repeated up to `length` rows."""
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


def put_block(frames: Any, stacks: np.ndarray, mesh: Mesh) -> tuple[Any, jax.Array]:
    """The frames on every device, the samples split over the devices."""
    everywhere, spread = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS))
    )
    return jax.device_put(frames, everywhere), jax.device_put(stacks, spread)


def make_encode_block(spec: RunSpec, mesh: Mesh) -> EncodeBlock:
    """The jitted function (encoder, frames, stacks) -> latents (b, d) of the cache's type.

    Its arguments are `put_block`'s.
    """
    encoding, config = agent_of(spec).encoding, spec.config

    def encode(encoder: Params, frames: Any, stacks: jax.Array) -> jax.Array:
        observations = jax.tree.map(lambda array: stack_frames(array[stacks]), frames)
        params = {'encoders': {'shared': encoder}}
        latents = encoding.encode(params, 'critic', observations)
        return latents.astype(config.latent_cache)

    spread = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(encode, out_shardings=spread, compiler_options=compiler_options())
