"""The checks of every source; see test_ogbench.py for the faults of files."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.source_split import ArraySpec, SourceSplit, checked_blocks


def as_source(blocks: list[tuple[str, np.ndarray]], rows: int, known: bool = True) -> SourceSplit:
    first = dict(reversed(blocks))
    return SourceSplit(
        origin='the source',
        description={},
        arrays={name: ArraySpec(block.shape[1:], block.dtype) for name, block in first.items()},
        rows=rows,
        read=lambda note: iter(blocks),
        rows_are_known=known,
    )


def no_note(line: str) -> None:
    raise AssertionError(line)


def by_episodes(arrays: dict[str, np.ndarray], lengths: tuple[int, ...]) -> Iterator[tuple]:
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        for name in ('observations', 'terminals', 'actions'):
            yield name, arrays[name][end - length : end]


def test_alternating_blocks_of_ragged_trajectories(make_arrays):
    lengths = (2, 30, 7, 2)
    arrays = make_arrays(lengths)
    source = as_source(list(by_episodes(arrays, lengths)), rows=99, known=False)
    blocks = list(checked_blocks(source, no_note))
    for name in ('observations', 'terminals', 'actions'):
        found = np.concatenate([block for block_name, block in blocks if block_name == name])
        np.testing.assert_array_equal(found, arrays[name])
    assert source.nbytes == 99 * (8 * 8 * 3 + 4 * 4 + 1)


@pytest.mark.parametrize('trajectory', [0, 1, 3])
def test_a_black_trajectory_is_named(make_arrays, trajectory):
    lengths = (2, 3, 7, 2)
    arrays = make_arrays(lengths)
    end = sum(lengths[: trajectory + 1])
    arrays['observations'][end - lengths[trajectory] : end] = 0
    message = (
        rf'the source: all images of trajectory {trajectory} '
        rf'\(rows {end - lengths[trajectory]} to {end - 1}\) are zero, the same in 1 of 4'
    )
    for blocks in (list(arrays.items()), list(by_episodes(arrays, lengths))):
        with pytest.raises(DataError, match=message):
            list(checked_blocks(as_source(blocks, rows=14), no_note))


LENGTHS = (2, 3, 7, 2)


def two_cameras(make_arrays, black: dict[str, tuple[int, ...]]) -> SourceSplit:
    """Images `observations.front` and `.wrist`, black in these trajectories."""
    arrays = make_arrays(LENGTHS)
    front = arrays.pop('observations')
    images = {'front': front, 'wrist': front[..., :1].copy()}
    ends = np.cumsum(LENGTHS)
    for name, trajectories in black.items():
        for i in trajectories:
            images[name][ends[i] - LENGTHS[i] : ends[i]] = 0
    arrays |= {f'observations.{name}': array for name, array in images.items()}
    return as_source(list(arrays.items()), rows=14)


@pytest.mark.parametrize(
    ('black', 'lines'),
    [
        ({}, []),
        ({'wrist': (0,)}, ['observations.wrist: all images of 1 of 4 trajectories are zero']),
        (
            {'front': (1,), 'wrist': (0, 3)},
            [
                'observations.front: all images of 1 of 4 trajectories are zero',
                'observations.wrist: all images of 2 of 4 trajectories are zero',
            ],
        ),
    ],
)
def test_one_of_several_cameras_may_be_black(make_arrays, black, lines):
    notes: list[str] = []
    list(checked_blocks(two_cameras(make_arrays, black), notes.append))
    assert notes == lines


@pytest.mark.parametrize(
    ('black', 'message'),
    [
        (
            {'wrist': (1, 2, 3)},
            r'of trajectory 1 \(rows 2 to 4\) are zero in observations\.wrist, the same in 3 of 4',
        ),
        ({'front': (1, 2), 'wrist': (2, 3)}, r'trajectory 2 \(rows 5 to 11\) are zero, .* 1 of 4'),
    ],
)
def test_cameras_that_were_never_rendered(make_arrays, black, message):
    """One of them in most trajectories, or all of them in one."""
    with pytest.raises(DataError, match=message):
        list(checked_blocks(two_cameras(make_arrays, black), no_note))


def test_black_frames_and_zero_vectors_are_let_pass(make_arrays):
    arrays = make_arrays((2, 3))
    arrays['observations'][[0, 2, 3]] = 0
    list(checked_blocks(as_source(list(arrays.items()), rows=5), no_note))
    vectors = make_arrays((2, 3), (9,), dtype=np.float32)
    vectors['observations'][:] = 0
    list(checked_blocks(as_source(list(vectors.items()), rows=5), no_note))


def test_images_of_changing_size(make_arrays):
    small, large = make_arrays((3,)), make_arrays((3,), (9, 8, 3))
    blocks = [*small.items(), *large.items()]
    with pytest.raises(DataError, match=r'shape \(9, 8, 3\) from row 3 on, \(8, 8, 3\) before'):
        list(checked_blocks(as_source(blocks, rows=6), no_note))


def test_rows_are_numbered_from_the_start_of_the_array(make_arrays):
    arrays = make_arrays((3, 3))
    arrays['actions'][4, 2] = -1.25
    with pytest.raises(DataError, match=r'actions reach 1\.25 in row 4, outside \[-1, 1\]'):
        list(checked_blocks(as_source(list(by_episodes(arrays, (3, 3))), rows=6), no_note))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', ['observations', 'actions', 'rewards', 'masks'])
def test_numbers_too_large_for_the_store(make_arrays, name):
    """1e39 is finite in float64, as the source has it, and infinite in float32."""
    arrays = make_arrays((2, 3), (9,), dtype=np.float64)
    arrays |= {'rewards': np.zeros(5), 'masks': np.ones(5)}
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name][3] = 1e39
    source = as_source(list(arrays.items()), rows=5)
    specs = {
        key: dataclasses.replace(spec, dtype=np.dtype(bool if key == 'terminals' else np.float32))
        for key, spec in source.arrays.items()
    }
    source = dataclasses.replace(source, arrays=specs)
    with pytest.raises(DataError, match=f'{name} holds values that are not finite, first in row 3'):
        list(checked_blocks(source, no_note))


def test_ends_are_checked_before_frames_are_copied(make_arrays):
    arrays = make_arrays()
    arrays['terminals'][-1] = False
    blocks = [('terminals', arrays['terminals']), ('actions', arrays['actions'])]
    source = as_source([*blocks, ('observations', arrays['observations'])], rows=14)
    passing = checked_blocks(source, no_note)
    with pytest.raises(DataError, match='last row is not the end'):
        next(passing)
