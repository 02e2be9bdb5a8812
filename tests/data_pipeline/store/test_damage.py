"""Any damage of a manifest or a header: a one-line error, or no change of what is read."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.files import load_array, load_arrays
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import open_store
from data_pipeline.store.writer import write_store


@pytest.fixture
def store(make_arrays, tmp_path) -> Path:
    np.savez(tmp_path / 'd.npz', **make_arrays())
    return write_store(tmp_path / 'd', 'd', npz_splits(tmp_path / 'd.npz')).path


def assert_refused_or_the_same(store: Path, expected: dict[str, np.ndarray], damage: str) -> bool:
    """Whether the store was refused; if it opens, it must be unchanged."""
    try:
        split = open_store(store).splits['train']
    except DataError as error:
        message = str(error)
        assert message.startswith(f'{store}'), damage
        assert len(message.splitlines()) == 1, damage
        return True
    assert split.arrays.keys() == expected.keys(), damage
    for name, array in split.arrays.items():
        assert array.dtype == expected[name].dtype, damage
        np.testing.assert_array_equal(array, expected[name], err_msg=damage)
    return False


def test_every_byte_of_a_manifest(store, make_arrays):
    path = store / 'manifest.json'
    whole, expected = path.read_bytes(), make_arrays()
    refused = 0
    for place in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused += assert_refused_or_the_same(store, expected, f'byte {place}')
    assert refused > len(whole) / 8
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        assert assert_refused_or_the_same(store, expected, f'{length} bytes')


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON object, inner ones included."""
    if path:
        yield path
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from leaves(values[key], (*path, key))


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**30, 1.5, float('nan'), '', 'x', '../train', '\ud800', 'a\0b'),
    *([], [1], [[]], {}, {'x': 1}),
)


def test_every_value_of_a_manifest_replaced_by_another_or_missing(store, make_arrays):
    path = store / 'manifest.json'
    whole, expected = json.loads(path.read_text()), make_arrays()
    for place in leaves(whole):
        is_optional = place[0] == 'versions' or place[-1] in ('qpos', 'qvel')
        for value in VALUES if is_optional else (*VALUES, KeyError):
            damaged = copy.deepcopy(whole)
            inner = damaged
            for key in place[:-1]:
                inner = inner[key]
            if value is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            path.write_text(json.dumps(damaged))
            is_refused = assert_refused_or_the_same(store, expected, f'{place}: {value!r}')
            assert is_refused or value is not KeyError, place


@pytest.mark.parametrize(
    'text',
    ['', 'null', '[]', '3', '"x"', '[' * 100_000, '{"a":' * 100_000, '1' * 5000, '\ufeff{}', 'NaN'],
)
def test_what_is_no_manifest(store, make_arrays, text):
    (store / 'manifest.json').write_text(text, encoding='utf-8')
    assert assert_refused_or_the_same(store, make_arrays(), text[:10])


def test_names_in_a_manifest_are_those_of_files_in_the_store(store, make_arrays):
    """A split or an array whose name is a path would be read from another folder."""
    path = store / 'manifest.json'
    shutil.copytree(store / 'train', store.parent / 'elsewhere')
    values = json.loads(path.read_text())
    for kind in ('splits', 'sources'):
        values[kind]['../elsewhere'] = values[kind].pop('train')
    path.write_text(json.dumps(values))
    assert assert_refused_or_the_same(store, make_arrays(), 'path')


@pytest.mark.parametrize('name', ['actions', 'observations'])
def test_every_bit_of_a_header(store, make_arrays, name):
    path = store / 'train' / f'{name}.npy'
    whole, expected = path.read_bytes(), make_arrays()
    header = len(whole) - expected[name].nbytes
    refused = 0
    for bit in range(8 * header):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused += assert_refused_or_the_same(store, expected, f'bit {bit}')
    assert refused > 8 * 60  # The rest is the padding.


def npy(header: str, data: bytes = b'', version: bytes = b'\x01\x00') -> bytes:
    """A `.npy` file with this header."""
    text = header.encode('latin1') + b'\n'
    size = 2 if version == b'\x01\x00' else 4
    return b'\x93NUMPY' + version + len(text).to_bytes(size, 'little') + text + data


def described(descr: str = "'<f4'", order: str = 'False', shape: str = '(2, 3)') -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


FLOATS = np.arange(6, dtype='<f4').tobytes()
BAD_ARRAYS = {
    'empty': b'',
    'magic alone': b'\x93NUMPY',
    'another magic': b'\x93NUMPX\x01\x00' + npy(described(), FLOATS)[8:],
    'version 9': npy(described(), FLOATS, b'\x09\x00'),
    'version 3': npy(described(), FLOATS, b'\x03\x00'),
    'header cut': npy(described(), FLOATS)[:30],
    'header of 4 GB': b'\x93NUMPY\x02\x00\xff\xff\xff\xff' + FLOATS,
    'open bracket': npy("{'descr': '<f4', 'shape': (2, 3", FLOATS),
    'open string': npy("{'descr': '<f4", FLOATS),
    'odd indent': npy('  {\n 1:\n2', FLOATS),
    'not a dictionary': npy('[1, 2]', FLOATS),
    'keys of several types': npy("{1: 2, 'x': 3}", FLOATS),
    'unhashable key': npy('{[]: 1}', FLOATS),
    'nested deeply': npy('(' * 3000, FLOATS),
    'signs': npy('-' * 9000 + '1', FLOATS),
    'names': npy("{'descr': open('x'), 'fortran_order': False, 'shape': (2, 3)}", FLOATS),
    'no shape': npy("{'descr': '<f4', 'fortran_order': False}", FLOATS),
    'shape of text': npy(described(shape="('a',)"), FLOATS),
    'shape of bools': npy(described(shape='(True, 6)'), FLOATS),
    'negative shape': npy(described(shape='(-2, -3)'), FLOATS),
    'huge shape': npy(described(shape=f'({10**30}, 3)'), FLOATS),
    'terabytes': npy(described(shape=f'({10**12}, 3)'), FLOATS),
    'one row more': npy(described(shape='(3, 3)'), FLOATS),
    'one row less': npy(described(shape='(1, 3)'), FLOATS),
    'Fortran order': npy(described(order='True'), FLOATS),
    'order of text': npy(described(order="'no'"), FLOATS),
    'objects': npy(described("'|O'", shape='(3,)'), FLOATS),
    'text': npy(described("'<U1'", shape='(6,)'), FLOATS),
    'dates': npy(described("'<M8[s]'", shape='(3,)'), FLOATS),
    'no bytes': npy(described("'|V0'", shape='(3,)')),
    'unknown type': npy(described("'<f3'"), FLOATS),
    'type of a number': npy(described('3'), FLOATS),
    'type of a dictionary': npy(described("{'names': 1}"), FLOATS),
    'type of lists': npy(described('[[[]]]'), FLOATS),
    'type of a short tuple': npy(described("('<f4',)"), FLOATS),
    'records': npy(described("[('a', '<f4')]", shape='(6,)'), FLOATS),
    'rows as type': npy(described("('<f4', (3,))", shape='(2,)'), FLOATS),
    'a pickle': b'\x80\x04K\x01.',
    'an archive': b'PK\x03\x04' + bytes(60),
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('mapped', [False, True])
@pytest.mark.parametrize('kind', BAD_ARRAYS)
def test_what_is_no_array(tmp_path, kind, mapped):
    path = tmp_path / 'a.npy'
    path.write_bytes(BAD_ARRAYS[kind])
    with pytest.raises(ValueError, match=r'\w') as caught:
        load_array(path, mapped=mapped)
    assert len(str(caught.value).splitlines()) == 1
    np.savez(tmp_path / 'a.npz', sound=np.arange(3))
    with pytest.raises(ValueError, match=r'\w') as caught:
        load_arrays(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('mapped', [False, True])
@pytest.mark.parametrize('version', [b'\x01\x00', b'\x02\x00'])
def test_what_is_one(tmp_path, mapped, version):
    path = tmp_path / 'a.npy'
    path.write_bytes(npy(described(), FLOATS, version))
    array = load_array(path, mapped=mapped)
    np.testing.assert_array_equal(array, np.arange(6, dtype=np.float32).reshape(2, 3))
    with pytest.raises(FileNotFoundError):
        load_array(tmp_path / 'b.npy', mapped=mapped)
