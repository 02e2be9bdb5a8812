"""Saved encoders: small folders that describe themselves, and are loaded strictly.

    <folder>/encoder.json    what the encoder is, what it was trained on, and a digest
    <folder>/params/         its parameters, written by Orbax

A folder is complete or absent if its writer renames it into place after writing it
(`fql.pretraining.saved_encoders`).
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from encoders.cameras import Shapes, abstract_observations, observation_encoder
from encoders.description import SavedEncoder, read_encoder, write_encoder
from encoders.errors import EncoderError
from encoders.folder_names import name_fault
from encoders.impala import ENCODERS
from encoders.leaves import describe_leaves, leaf_differences, tree_digest

logging.getLogger('absl').setLevel(logging.CRITICAL)

PARAMS = 'params'

Params = dict[str, Any]


def save_encoder(folder: Path, params: Params, saved: SavedEncoder) -> SavedEncoder:
    """Write an encoder into a folder.

    Args:
        folder: an empty folder.
        params: of the encoder alone, float32.
        saved: its description; the digest is filled in.

    Returns:
        `saved` with the digest.

    Raises:
        EncoderError: the parameters are not those of such an encoder.
        OSError: they cannot be written.
    """
    _check_leaves(folder, describe_leaves(params), saved)
    saved = dataclasses.replace(saved, digest=tree_digest(params))
    write_params(folder / PARAMS, params)
    write_encoder(folder, saved)
    return saved


def write_params(folder: Path, params: Params) -> None:
    """Write parameters as arrays, by Orbax, into a folder that does not exist.

    Raises:
        OSError: they cannot be written.
    """
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder.absolute(), jax.tree.map(np.asarray, params))
    except ValueError as error:  # TensorStore's, with the system's reason before its details.
        reason = str(error).partition(' [')[0].rpartition(': ')[2]
        raise OSError(f'{folder}: cannot be written: {reason}') from error
    # It names the folder in which it was written; only object stores need it.
    (folder / 'commit_success.txt').unlink(missing_ok=True)


def load_encoder(
    folder: Path, encoder: str, image_shape: Shapes, frame_stack: int, cameras: str = 'separate'
) -> Params:
    """The parameters of a saved encoder, if it is exactly the expected one.

    Args:
        encoder: a key of `ENCODERS`.
        image_shape, frame_stack, cameras: see `SavedEncoder`.

    Returns:
        The tree that the encoder's `init` makes, of float32 NumPy arrays.

    Raises:
        EncoderError: no saved encoder, a damaged one, or another one; names all differences.
    """
    folder = Path(folder).absolute()
    if fault := name_fault(folder):
        raise EncoderError(fault)
    saved = read_encoder(folder)
    wanted = {
        'encoder': encoder,
        'image_shape': image_shape,
        'frame_stack': frame_stack,
        'cameras': cameras,
    }
    differences = [
        f'{name}: saved {getattr(saved, name)}, expected {value}'
        for name, value in wanted.items()
        if getattr(saved, name) != value
    ]
    if differences:
        raise EncoderError(f'{folder} is another encoder: {"; ".join(differences)}')
    abstract = abstract_params(saved)
    # The type of Orbax's error depends on the damage.
    try:
        with _checkpointer() as checkpointer:
            metadata = checkpointer.metadata(folder / PARAMS).item_metadata.tree
    except Exception as error:
        raise _damaged(folder, f'its parameters cannot be read ({type(error).__name__})') from error
    # Orbax silently casts another dtype, and reports other shapes without saying where.
    _check_leaves(folder, describe_leaves(metadata), saved)
    try:
        with _checkpointer() as checkpointer:
            params = checkpointer.restore(folder / PARAMS, abstract)
    except Exception as error:
        raise _damaged(folder, f'its parameters cannot be read ({type(error).__name__})') from error
    if tree_digest(params) != saved.digest:
        raise _damaged(folder, 'the parameters are not those that were written (digest differs)')
    return params


def abstract_params(saved: SavedEncoder) -> Params:
    """Shapes and dtypes of the parameters of such an encoder.

    Raises:
        EncoderError: there is no encoder of this name.
    """
    if saved.encoder not in ENCODERS:
        names = ', '.join(ENCODERS)
        raise EncoderError(f'unknown encoder {saved.encoder}; the encoders are {names}')
    encoder = observation_encoder(ENCODERS[saved.encoder], saved.image_shape, saved.cameras)
    observations = abstract_observations(saved.image_shape, 1, saved.frame_stack)
    return jax.eval_shape(encoder.init, jax.random.key(0), observations)['params']


def _checkpointer() -> ocp.StandardCheckpointer:
    """A checkpointer that waits for no other process: one process writes an encoder's folder."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f'encoder-{process}',
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _check_leaves(folder: Path, found: Mapping[str, str], saved: SavedEncoder) -> None:
    """Raise EncoderError, naming the leaves, if they are not those of such an encoder."""
    differences = leaf_differences(found, describe_leaves(abstract_params(saved)))
    if differences:
        raise EncoderError(f'{folder}: parameters are not those of {saved.encoder}: {differences}')


def _damaged(folder: Path, fault: str) -> EncoderError:
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.read_bytes().startswith(b'version https://git-lfs'):
            return EncoderError(f'{path}: is a Git LFS pointer; git lfs pull fetches the file')
    return EncoderError(f'{folder}: damaged encoder: {fault}')
