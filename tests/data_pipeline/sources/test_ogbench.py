import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.source_split import Note, checked_blocks
from data_pipeline.sources import ogbench
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.store.writer import write_store


def read_all(path: Path, note: Note = lambda line: None) -> dict[str, np.ndarray]:
    """Everything a store would read of a file."""
    split = ogbench.npz_splits(path)['train']
    blocks: dict[str, list[np.ndarray]] = {}
    for name, block in checked_blocks(split, note):
        blocks.setdefault(name, []).append(block)
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_reads_what_numpy_wrote(tmp_path, make_arrays, save):
    path, arrays = tmp_path / 'd.npz', make_arrays()
    save(path, **arrays, rewards=np.zeros(14))
    found = read_all(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_rewards_and_masks_are_read_together(tmp_path, make_arrays):
    path, arrays = tmp_path / 'd.npz', make_arrays()
    labels = {'rewards': np.arange(14) / 3, 'masks': np.arange(14) % 4 != 2}
    np.savez(path, **arrays, **labels)
    found = read_all(path)
    for name, array in labels.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32))
    for name, change, message in (
        ('masks', lambda x: x + 0.5, 'masks holds values outside'),
        ('rewards', lambda x: np.stack([x, x], 1), r'rewards is float64 of shape \(2,\)'),
        ('rewards', lambda x: np.where(x > 2, np.nan, x), 'rewards holds values that are not fin'),
        ('masks', lambda x: x[:13], 'arrays differ in length'),
    ):
        np.savez(path, **arrays, **{**labels, name: change(labels[name])})
        with pytest.raises(DataError, match=message):
            read_all(path)


def test_numbers_of_the_other_byte_order(tmp_path, make_arrays):
    path, arrays = tmp_path / 'd.npz', make_arrays()
    swapped = {name: array.astype(array.dtype.newbyteorder('>')) for name, array in arrays.items()}
    np.savez(path, **{**swapped, 'actions': arrays['actions'].astype('>f8')})
    for name, found in read_all(path).items():
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, arrays[name])


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_arrays_of_one_name_are_refused(tmp_path, make_arrays):
    path = tmp_path / 'd.npz'
    np.savez(path, **make_arrays())
    with zipfile.ZipFile(path, 'a') as archive, archive.open('actions.npy', 'w') as file:
        np.save(file, make_arrays(seed=1)['actions'])
    with pytest.raises(DataError, match=r'd\.npz: actions is there more than once$'):
        read_all(path)


def test_a_validation_file_that_is_a_link_to_nothing_is_not_passed_over(tmp_path, make_arrays):
    np.savez(tmp_path / 'd.npz', **make_arrays())
    (tmp_path / 'd-val.npz').symlink_to(tmp_path / 'unmounted' / 'd-val.npz')
    with pytest.raises(DataError, match=r'd-val\.npz: cannot be read: No such file'):
        ogbench.npz_splits(tmp_path / 'd.npz')


def test_blocks_are_small_and_in_order(tmp_path, make_arrays):
    path, arrays = tmp_path / 'd.npz', make_arrays((500, 501), (64, 64, 3))
    np.savez(path, **arrays)
    blocks = list(ogbench.read_members(path)[0]['observations'].blocks())
    assert len(blocks) > 2
    assert max(block.nbytes for block in blocks) <= 4 << 20
    np.testing.assert_array_equal(np.concatenate(blocks), arrays['observations'])


def test_real_file_reads_as_numpy_reads_it(real_source):
    member = ogbench.read_members(real_source)[0]['qpos']
    with np.load(real_source, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(np.concatenate(list(member.blocks())), arrays['qpos'])


def test_terminals_may_be_numbers(tmp_path, make_arrays):
    path, arrays = tmp_path / 'd.npz', make_arrays()
    np.savez(path, **{**arrays, 'terminals': arrays['terminals'].astype(np.float32)})
    assert read_all(path)['terminals'].sum() == 4


def without(name: str) -> Callable[[dict], dict]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def changed(name: str, change: Callable[[np.ndarray], object]) -> Callable[[dict], dict]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


def put(name: str, place: object, value: object) -> Callable[[dict], dict]:
    def change(arrays: dict) -> dict:
        array = arrays[name].copy()
        array[place] = value
        return {**arrays, name: array}

    return change


WRONG_ARRAYS = {
    'no observations': (without('observations'), 'has no observations'),
    'no actions, no terminals': (
        lambda arrays: {'observations': arrays['observations']},
        'has no actions, terminals',
    ),
    'float images': (changed('observations', np.float32), 'observations is float32'),
    'flat uint8': (changed('observations', lambda x: x.reshape(14, -1)), 'observations is uint8'),
    'int vectors': (changed('observations', lambda x: x[:, 0, 0].astype(int)), 'observations is'),
    'no channels': (changed('observations', lambda x: x[..., :0]), 'empty'),
    'no axis of channels': (
        changed('observations', lambda x: np.repeat(x, 3, -1)[..., :8]),
        r'not clear which axis holds the channels.*\(h, w, c\)',
    ),
    'no rows': (lambda arrays: {k: v[:0] for k, v in arrays.items()}, 'empty'),
    'actions of rank 1': (changed('actions', lambda x: x[:, 0]), 'actions is float32'),
    'whole-number actions': (changed('actions', np.int64), 'actions is int64'),
    'Fortran order': (changed('actions', np.asfortranarray), 'Fortran order'),
    'terminals of rank 2': (
        changed('terminals', lambda x: np.stack([x, x], 1)),
        r'terminals is bool of shape \(2,\)',
    ),
    'terminals of text': (changed('terminals', lambda x: x.astype('U5')), 'terminals is <U5'),
    'short actions': (changed('actions', lambda x: x[:-1]), "differ in length: .*'actions': 13"),
    'long qpos': (changed('qpos', lambda x: np.concatenate([x, x])), "differ in .*'qpos': 28"),
    'objects': (changed('qpos', lambda x: x.astype(object)), 'qpos holds Python objects'),
    'no end': (changed('terminals', np.zeros_like), 'no trajectory ends'),
    'no last end': (put('terminals', -1, False), 'last row is not the end'),
    'trajectories of 1 row only': (changed('terminals', np.ones_like), 'no trajectory has two'),
    'terminals of 2': (changed('terminals', lambda x: x * 2), 'other than 0 and 1'),
    'NaN terminals': (
        changed('terminals', lambda x: np.where(x, 1, np.nan)),
        'other than 0 and 1',
    ),
    'NaN action': (
        put('actions', (3, 1), np.nan),
        'actions holds values that are not finite, first in row 3',
    ),
    'action 1.5': (put('actions', (3, 1), 1.5), 'actions reach 1.5'),
    'action -1.001': (put('actions', (3, 1), -1.001), 'actions reach 1.001'),
    'infinite qpos': (put('qpos', (3, 1), np.inf), 'qpos holds values that are not finite'),
    'NaN qvel': (put('qvel', (3, 1), np.nan), 'qvel holds values that are not finite'),
}


@pytest.mark.parametrize('name', WRONG_ARRAYS)
def test_wrong_arrays_are_refused(tmp_path, make_arrays, name):
    change, message = WRONG_ARRAYS[name]
    path = tmp_path / 'd.npz'
    np.savez_compressed(path, **change(make_arrays()))
    with pytest.raises(DataError, match=message) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_actions_just_beyond_one_are_rounding(tmp_path, make_arrays):
    arrays = put('actions', (3, 1), np.nextafter(np.float32(1), np.float32(2)))(make_arrays())
    np.savez(tmp_path / 'd.npz', **arrays)
    read_all(tmp_path / 'd.npz')


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def frames_data_place(path: Path) -> int:
    """A place well within the data of the first member, observations."""
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo('observations.npy').header_offset + 1000


DAMAGES = {
    'truncated': lambda path, data: data[: len(data) * 2 // 3],
    'a byte in the middle gone': lambda path, data: data[:500] + data[501:],
    'last byte gone': lambda path, data: data[:-1],
    'flipped byte in the data': lambda path, data: flip(data, frames_data_place(path)),
    'empty': lambda path, data: b'',
    'text': lambda path, data: b'<html>404 Not Found</html>',
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_files_are_refused(tmp_path, make_arrays, name, save):
    path = tmp_path / 'd.npz'
    save(path, **make_arrays())
    path.write_bytes(DAMAGES[name](path, path.read_bytes()))
    with pytest.raises(DataError, match=r'not an \.npz file'):
        read_all(path)


def test_every_flipped_byte_is_refused_or_harmless(tmp_path, make_arrays):
    path, arrays = tmp_path / 'd.npz', make_arrays((2, 2), (2, 2, 3))
    np.savez_compressed(path, **arrays)
    data = path.read_bytes()
    refused = 0
    for place in range(len(data)):
        path.write_bytes(flip(data, place))
        try:
            found = read_all(path)
        except DataError:
            refused += 1
            continue
        # Unused fields of the zip format, and the names of arrays that may be missing.
        for name in found:
            np.testing.assert_array_equal(found[name], arrays[name])
    assert refused > len(data) * 0.7


def zip_of(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(f'{name}.npy', data)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize('change', [lambda data: data[:-1], lambda data: data + b'0'])
def test_member_of_another_length_than_its_header_says(tmp_path, make_arrays, change):
    members = {name: npy(array) for name, array in make_arrays().items()}
    members['observations'] = change(members['observations'])
    zip_of(tmp_path / 'd.npz', members)
    with pytest.raises(DataError, match='observations is not as long as its header says'):
        ogbench.read_members(tmp_path / 'd.npz')


def test_absurd_header_allocates_nothing(tmp_path, make_arrays):
    members = {name: npy(array) for name, array in make_arrays().items()}
    honest, absurd = b'(14, 4), }' + b' ' * 12, b'(99999999999999, 4), }'
    assert len(honest) == len(absurd)
    assert honest in members['actions']
    members['actions'] = members['actions'].replace(honest, absurd)
    zip_of(tmp_path / 'd.npz', members)
    with pytest.raises(DataError, match='actions is not as long as its header says'):
        ogbench.read_members(tmp_path / 'd.npz')


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r'nowhere\.npz: cannot be read: No such file'):
        ogbench.read_members(tmp_path / 'nowhere.npz')


@pytest.mark.parametrize(
    ('start', 'name'),
    [
        (b'\x89HDF\r\n\x1a\n', 'an HDF5 file'),
        (b'\x93NUMPY\x01', 'a single array'),
        (b'PAR1', 'a Parquet file'),
    ],
)
def test_a_file_of_another_format_is_named_and_not_to_be_deleted(tmp_path, start, name):
    path = tmp_path / 'x.npz'
    path.write_bytes(start + bytes(500))
    with pytest.raises(DataError, match=f'not an .npz file but {name}') as caught:
        ogbench.npz_splits(path)
    assert 'delete' not in str(caught.value)


def test_actions_may_be_float64_and_are_stored_as_float32(tmp_path):
    path = tmp_path / 'x.npz'
    np.savez(
        path,
        observations=np.ones((4, 8, 8, 3), np.uint8),
        actions=np.full((4, 2), 0.25, np.float64),
        terminals=np.array([0, 1, 0, 1], bool),
    )
    split = ogbench.npz_splits(path)['train']
    assert split.arrays['actions'].dtype == np.float32


def test_members_without_the_ending_are_read_as_numpy_reads_them(tmp_path, make_arrays):
    np.savez(tmp_path / 'd.npz', **make_arrays())
    with (
        zipfile.ZipFile(tmp_path / 'd.npz') as old,
        zipfile.ZipFile(tmp_path / 'e.npz', 'w') as new,
    ):
        for name in old.namelist():
            new.writestr(name.removesuffix('.npy'), old.read(name))
    for name, array in read_all(tmp_path / 'd.npz').items():
        np.testing.assert_array_equal(read_all(tmp_path / 'e.npz')[name], array)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a', 'a Git LFS pointer'),
        (b'\n<!doctype html><title>404</title>', 'a web page'),
        (b'<?xml version="1.0"?><Error/>', 'an XML document'),
        (b'\x80\x04\x95\x10', 'a pickle'),
        (b'MATLAB 5.0 MAT-file', 'a MATLAB file'),
        (b'', 'an empty file'),
    ],
)
def test_what_lies_in_place_of_a_file_is_named(tmp_path, content, message):
    (tmp_path / 'd.npz').write_bytes(content)
    with pytest.raises(DataError, match=f'not an .npz file but {message}'):
        read_all(tmp_path / 'd.npz')


def test_a_folder_is_of_lerobot_or_rlds(tmp_path):
    with pytest.raises(DataError, match=r'a folder without meta/info\.json.*; --tfds reads'):
        file_splits(tmp_path, 'd')


def test_what_a_file_holds_is_said_if_it_lacks_an_array(tmp_path, make_arrays):
    np.savez(tmp_path / 'd.npz', **{f'data/{name}': x for name, x in make_arrays().items()})
    with pytest.raises(DataError, match=r'no observations, .*; it has data/actions, data/obs'):
        read_all(tmp_path / 'd.npz')


@pytest.mark.parametrize('when', ['before', 'within'])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, make_arrays, when):
    """Else a store could have the frames of one file and the actions of another."""
    path = tmp_path / 'd.npz'
    np.savez(path, **make_arrays())
    np.savez(tmp_path / 'other.npz', **make_arrays(seed=1))
    split = ogbench.npz_splits(path)['train']
    blocks = checked_blocks(split, lambda line: None)
    if when == 'within':
        next(block for block in blocks if block[0] == 'actions')
    (tmp_path / 'other.npz').replace(path)
    with pytest.raises(DataError, match=r'd\.npz: was changed while it was read; run'):
        list(blocks)


def test_names_of_ignored_arrays_cannot_break_lines(tmp_path, make_arrays):
    np.savez(tmp_path / 'd.npz', **make_arrays(), **{'a\nb': np.zeros(14), '\x1b[2J': np.zeros(14)})
    store = write_store(tmp_path / 'd', 'd', ogbench.npz_splits(tmp_path / 'd.npz'))
    assert store.manifest.sources['train']['notes'] == [r'ignored: \x1b[2J, a\nb']
