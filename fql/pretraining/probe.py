"""Linear probes from frozen latents to the robot's and the objects' positions."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import reduce
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.observations import map_named, named
from data_pipeline.store.frame_store import FrameStore, Split
from encoders.cameras import blank_observations, observation_encoder
from encoders.description import SavedEncoder, read_encoder
from encoders.errors import EncoderError
from encoders.impala import ENCODERS
from encoders.probing import fit_probe, r_squared
from encoders.saved import Params, load_encoder
from fql.batch import stack_frames
from fql.errors import FQLError
from fql.runs.progress import progress_bar
from fql.training.training_data import frame_shapes, open_dataset
from fql.training.verified_data import verify_once

BLOCK = 256
"""Rows encoded at a time."""
PIXELS = 16
"""Height and width to which images are averaged for the probe of pixels, at most."""
STILL = 0.01
"""Columns of a smaller standard deviation (radians, metres) are left out of a group's mean."""

Features = Callable[[Any], np.ndarray]


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """R^2 on the validation split.

    Attributes:
        columns: of qpos, m of them.
        scores: (m,) R^2 by the name of the features: saved, random, pixels.
        moves: (m,) bool, whether a column varies enough in the training split to be judged.
        train_rows, val_rows: how many were used.
    """

    columns: tuple[int, ...]
    scores: dict[str, np.ndarray]
    moves: np.ndarray
    train_rows: int
    val_rows: int

    def group_mean(self, features: str, columns: range) -> float:
        """The mean over the moving ones of some columns; NaN if there are none."""
        is_in = np.isin(self.columns, list(columns)) & self.moves
        return float(self.scores[features][is_in].mean()) if is_in.any() else float('nan')


def probe_encoder(
    folder: Path, dataset: str | None, data_dir: str, columns: tuple[int, ...], rows: int
) -> str:
    """The table of a saved encoder.

    Args:
        folder: of the encoder.
        dataset: name of a prepared dataset; None: the one that it was trained on.
        columns, rows: see `probe`.

    Raises:
        EncoderError: no saved encoder, or one for other images than the data's.
        FQLError, DataError: no such data, damaged data, or nothing there to probe for.
    """
    saved = read_encoder(folder)
    store = open_dataset(dataset or saved.dataset, data_dir)
    shape = frame_shapes(store.splits['train'])
    if shape != saved.image_shape:
        raise EncoderError(
            f'{folder} is for frames of {saved.image_shape}, {store.path} has {shape}'
        )
    verify_once(store)
    params = load_encoder(
        folder, saved.encoder, saved.image_shape, saved.frame_stack, saved.cameras
    )
    return probe_table(folder, saved, store, probe(store, saved, params, columns, rows))


def probe(
    store: FrameStore, saved: SavedEncoder, params: Params, columns: tuple[int, ...], rows: int
) -> ProbeResult:
    """Probe a saved encoder, a random one of its architecture, and pixels.

    Args:
        columns: of qpos; all if empty.
        rows: of each split at most, evenly spaced.

    Raises:
        FQLError, DataError: see `probe_encoder`.
    """
    train, val = (split_with_qpos(store, name) for name in ('train', 'val'))
    width = train.info['qpos'].shape[1]
    columns = columns or tuple(range(width))
    if wrong := [column for column in columns if not 0 <= column < width]:
        raise FQLError(f'target {wrong}: qpos of {store.path} has columns 0 to {width - 1}')
    if rows < 10:
        raise FQLError('rows must be at least 10')
    encoder = observation_encoder(ENCODERS[saved.encoder], saved.image_shape, saved.cameras)
    observations = blank_observations(saved.image_shape, saved.frame_stack)
    # Given as an argument, so that saved and random share one compiled program.
    encode = jax.jit(lambda params, shown: encoder.apply({'params': params}, shown))
    random = jax.jit(encoder.init)(jax.random.key(0), observations)['params']
    ways: dict[str, Features] = {
        'saved': lambda shown: encode(params, shown),
        'random': lambda shown: encode(random, shown),
        'pixels': shrink,
    }
    train_rows, val_rows = spaced_rows(train, rows), spaced_rows(val, rows)
    targets = train.info['qpos'][train_rows][:, columns]
    val_targets = val.info['qpos'][val_rows][:, columns]
    scores = {}
    with progress_bar('probe', 'row', len(ways) * (len(train_rows) + len(val_rows))) as bar:
        for name, features in ways.items():
            known = compute_features(train, train_rows, saved.frame_stack, features, bar)
            unknown = compute_features(val, val_rows, saved.frame_stack, features, bar)
            scores[name] = r_squared(fit_probe(known, targets)(unknown), val_targets)
    moves = targets.std(axis=0, dtype=np.float64) >= STILL
    return ProbeResult(columns, scores, moves, len(train_rows), len(val_rows))


def split_with_qpos(store: FrameStore, name: str) -> Split:
    """A split that has qpos.

    Raises:
        DataError: there is no such split, or it has none.
    """
    if name not in store.splits:
        raise DataError(f'{store.path} has no {name} split, which the probe needs')
    if 'qpos' not in store.splits[name].info:
        raise DataError(f'{store.path}: the {name} split has no qpos to probe for')
    return store.splits[name]


def spaced_rows(split: Split, count: int) -> np.ndarray:
    """At most `count` rows of a split, (n,) int64, evenly spaced, ascending."""
    total = len(split.terminals)
    return np.linspace(0, total - 1, min(total, count)).astype(np.int64)


def read_stacks(split: Split, rows: np.ndarray) -> Any:
    """The stacks of rows (b, frame_stack), oldest first."""
    return map_named(lambda array: np.asarray(stack_frames(array[rows])), split.observations)


def compute_features(
    split: Split, rows: np.ndarray, frame_stack: int, features: Features, bar: tqdm
) -> np.ndarray:
    """(n, d) float32 features of the stacks that end in these rows, a block at a time."""
    first = split.first_rows
    offsets = np.arange(1 - frame_stack, 1)
    blocks = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        # The last block is filled up, so that there is one shape to compile for.
        filled = np.pad(block, (0, BLOCK - len(block)), mode='edge')
        stack = np.maximum(filled[:, None] + offsets, first[filled][:, None])
        shown = read_stacks(split, stack)
        blocks.append(np.asarray(features(shown), np.float32)[: len(block)])
        bar.update(len(block))
    return np.concatenate(blocks)


def shrink(observations: Any) -> np.ndarray:
    """Features (b, d) float32 of observations: averages of images, vectors as they are."""
    arrays = named(observations).values()
    parts = [shrink_images(array) if array.ndim == 4 else array for array in arrays]
    return np.concatenate(parts, axis=1)


def shrink_images(images: np.ndarray) -> np.ndarray:
    """(b, h, w, c) uint8 to (b, d) float32: averages over equal blocks, at most 16x16 of them."""
    height, width = (-(-size // PIXELS) for size in images.shape[1:3])
    rows, columns = images.shape[1] // height * height, images.shape[2] // width * width
    return reduce(
        images[:, :rows, :columns].astype(np.float32),
        'b (h i) (w j) c -> b (h w c)',
        'mean',
        i=height,
        j=width,
    )


def qpos_groups(dataset: str, width: int) -> dict[str, range]:
    """What the columns of qpos are, for the datasets of OGBench where that is known.

    The order is that of the joints in OGBench's MuJoCo models: six of the UR5e arm, eight of the
    gripper, then for each cube a free joint (position x, y, z and quaternion), then buttons, drawer
    and window; of a point maze, the point's position.
    """
    if 'pointmaze' in dataset:
        return {'position': range(2)}
    cubes = re.search('cube-(single|double|triple|quadruple)', dataset)
    names = ('single', 'double', 'triple', 'quadruple')
    if cubes:
        count = names.index(cubes[1]) + 1
    elif 'scene' in dataset or 'puzzle' in dataset:
        count = int('scene' in dataset)
    else:
        return {}
    groups = {'arm': range(5), 'wrist': range(5, 6), 'gripper': range(6, 14)}
    for i in range(count):
        first = 14 + 7 * i
        name = f'cube {i}' if count > 1 else 'cube'
        groups[f'{name} position'] = range(first, first + 3)
        groups[f'{name} orientation'] = range(first + 3, first + 7)
    rest = 14 + 7 * count
    if rest < width:
        groups['buttons, drawer, window' if 'scene' in dataset else 'buttons'] = range(rest, width)
    return groups


def probe_table(folder: Path, saved: SavedEncoder, store: FrameStore, result: ProbeResult) -> str:
    """The table of R^2, groups first."""
    lines = [
        f'{folder}: {saved.encoder} of {saved.shape_text}, stack of {saved.frame_stack}, '
        f'{saved.objective} on {saved.dataset}, {saved.step:,} updates',
        f'{store.path}: fitted to {result.train_rows:,} rows of train, R^2 on '
        f'{result.val_rows:,} rows of val; pixels are averaged to at most {PIXELS}x{PIXELS}',
        '',
        f'{"":>24}' + ''.join(f'{name:>9}' for name in result.scores),
    ]
    for group, columns in qpos_groups(store.manifest.dataset, 1 + max(result.columns)).items():
        means = [result.group_mean(name, columns) for name in result.scores]
        if not np.isnan(means).all():
            lines.append(f'{group:>24}' + ''.join(f'{mean:9.3f}' for mean in means))
    for i, column in enumerate(result.columns):
        scores = ''.join(f'{values[i]:9.3f}' for values in result.scores.values())
        note = '' if result.moves[i] else '   (hardly moves; in no mean)'
        lines.append(f'{f"qpos[{column}]":>24}{scores}{note}')
    return '\n'.join(lines)
