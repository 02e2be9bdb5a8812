"""Saved encoders: bit-exact round trips, and readable errors on anything else."""

import dataclasses
import json
import resource

import jax
import numpy as np
import pytest

from encoders.description import (
    DESCRIPTION,
    FORMAT_VERSION,
    SavedEncoder,
    read_encoder,
    write_encoder,
)
from encoders.errors import EncoderError
from encoders.impala import ENCODERS
from encoders.leaves import tree_digest
from encoders.saved import abstract_params, load_encoder, save_encoder, write_params

SAVED = SavedEncoder(
    encoder='impala_debug',
    image_shape=(8, 8, 3),
    frame_stack=2,
    objective='inverse_dynamics',
    dataset='d',
    step=7,
    versions={'jax': '1'},
)
EXPECTED = ('impala_debug', (8, 8, 3), 2)


@pytest.fixture(scope='module')
def params():
    images = np.zeros((1, 8, 8, 6), np.uint8)
    return jax.jit(ENCODERS['impala_debug'].init)(jax.random.key(0), images)['params']


@pytest.fixture
def folder(tmp_path, params):
    (tmp_path / 'encoder').mkdir()
    save_encoder(tmp_path / 'encoder', params, SAVED)
    return tmp_path / 'encoder'


def test_round_trip_is_bit_exact(folder, params):
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder, *EXPECTED), params)
    saved = read_encoder(folder)
    assert saved == dataclasses.replace(SAVED, digest=tree_digest(params))


def test_a_full_disk_is_one_line_and_no_folder_is_named(tmp_path, params, folder):
    """A limit on the size of files fails as a full disk does, within Orbax."""
    assert not [
        path
        for path in folder.rglob('*')
        if path.is_file() and str(folder).encode() in path.read_bytes()
    ]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r'params: cannot be written: File too large$'):
            write_params(tmp_path / 'params', params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


SHAPES = {'left': (8, 8, 3), 'right': (8, 8, 3), 'pose': (4,)}
SEVERAL = dataclasses.replace(SAVED, image_shape=SHAPES)


@pytest.mark.parametrize('cameras', ['separate', 'shared'])
def test_an_encoder_of_several_arrays(tmp_path, cameras):
    saved = dataclasses.replace(SEVERAL, cameras=cameras)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract_params(saved)
    )
    assert len(params) == {'separate': 3, 'shared': 2}[cameras]
    saved = save_encoder(tmp_path, params, saved)
    assert read_encoder(tmp_path) == saved
    found = load_encoder(tmp_path, 'impala_debug', SHAPES, 2, cameras)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    other = {'separate': 'shared', 'shared': 'separate'}[cameras]
    with pytest.raises(EncoderError, match=f'cameras: saved {cameras}, expected {other}'):
        load_encoder(tmp_path, 'impala_debug', SHAPES, 2, other)
    with pytest.raises(EncoderError, match=r"image_shape: saved {.*'pose': \(4,\)}, expected {"):
        load_encoder(tmp_path, 'impala_debug', {**SHAPES, 'pose': (5,)}, 2, cameras)
    with pytest.raises(EncoderError, match=r'image_shape: saved {.*}, expected \(8, 8, 3\)'):
        load_encoder(tmp_path, *EXPECTED)


@pytest.mark.parametrize(
    'changes',
    [
        {'image_shape': {}},
        {'image_shape': {'pose': [4]}},
        {'image_shape': {**SHAPES, 'pose': [4, 4]}},
        {'image_shape': {**SHAPES, 'pose': 4}},
        {'cameras': 'both'},
        {'cameras': 'shared', 'image_shape': {**SHAPES, 'left': [8, 9, 3]}},
        {'cameras': 'shared', 'image_shape': [8, 8, 3]},
    ],
)
def test_a_damaged_description_of_several_arrays(tmp_path, changes):
    write_encoder(tmp_path, SEVERAL)
    path = tmp_path / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(EncoderError, match='damaged'):
        read_encoder(tmp_path)


def test_the_description_of_one_image_has_no_cameras(folder):
    assert 'cameras' not in json.loads((folder / DESCRIPTION).read_text())


def test_the_digest_sees_bits_paths_and_shapes(params):
    digest = tree_digest(params)
    nudged = jax.tree.map(lambda x: np.nextafter(np.asarray(x), np.float32(1)), params)
    renamed = {**{k: v for k, v in params.items() if k != 'mlp'}, 'mlq': params['mlp']}
    reshaped = jax.tree.map(lambda x: np.asarray(x)[None], params)
    assert len({digest, *(tree_digest(p) for p in (nudged, renamed, reshaped))}) == 4


def test_all_that_differs_is_named(folder):
    with pytest.raises(EncoderError) as caught:
        load_encoder(folder, 'impala_small', (16, 8, 3), 3)
    for text in (
        'encoder: saved impala_debug, expected impala_small',
        'image_shape: saved (8, 8, 3), expected (16, 8, 3)',
        'frame_stack: saved 2, expected 3',
    ):
        assert text in str(caught.value)


def test_parameters_of_another_encoder_are_neither_saved_nor_loaded(tmp_path, params, monkeypatch):
    with pytest.raises(EncoderError, match=r'mlp/dense_0/kernel: saved .*\(16, 512\), expected'):
        save_encoder(tmp_path, params, dataclasses.replace(SAVED, image_shape=(16, 16, 3)))
    assert not list(tmp_path.iterdir())
    # As after a change of the encoder that has this name.
    save_encoder(tmp_path, params, SAVED)
    monkeypatch.setitem(ENCODERS, 'impala_debug', ENCODERS['impala_debug'].clone(num_blocks=2))
    with pytest.raises(EncoderError, match=r'stack_0/conv_3/bias: saved nothing, expected float32'):
        load_encoder(tmp_path, *EXPECTED)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(EncoderError, match='is not a saved encoder'):
        read_encoder(tmp_path)
    (tmp_path / DESCRIPTION).write_text('{')
    with pytest.raises(EncoderError, match='not valid JSON'):
        read_encoder(tmp_path)
    with pytest.raises(EncoderError, match='is not a saved encoder'):
        read_encoder(tmp_path / DESCRIPTION)


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'format_version': FORMAT_VERSION + 1}, f'format version {FORMAT_VERSION + 1}'),
        ({'colour': 'red'}, 'colour'),
        *(({'image_shape': value}, 'image_shape') for value in (None, 'abc', [8, 8], [8, 8, 3.0])),
        *(({'versions': value}, 'versions') for value in (None, [], {'a': 1})),
        *(({name: []}, name) for name in ('encoder', 'frame_stack', 'step', 'dataset', 'digest')),
        ({'frame_stack': 10**20}, 'frame_stack'),
    ],
)
def test_folders_of_another_version(folder, change, text):
    path = folder / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EncoderError, match=text):
        load_encoder(folder, *EXPECTED)


def largest_file(folder):
    files = (path for path in (folder / 'params').rglob('*') if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unlink(folder):
    largest_file(folder).unlink()


def exchange_digest(folder):
    path = folder / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), 'digest': '0' * 64}))


@pytest.mark.parametrize('damage', [flip_bit, truncate, unlink, exchange_digest])
def test_damage_is_found(folder, damage):
    damage(folder)
    with pytest.raises(EncoderError, match='damaged'):
        load_encoder(folder, *EXPECTED)


@pytest.mark.parametrize('name', ['[a]', 'a*', 'a?', 'a\\b'])
def test_folders_from_which_orbax_reads_nothing(folder, name):
    moved = folder.rename(folder.parent / name)
    with pytest.raises(EncoderError, match='Orbax cannot read from a folder with'):
        load_encoder(moved, *EXPECTED)


def test_a_clone_without_git_lfs_has_pointers(folder):
    pointer = largest_file(folder)
    pointer.write_bytes(
        b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
    )
    with pytest.raises(EncoderError, match=f'{pointer.name}: is a Git LFS pointer; git lfs pull'):
        load_encoder(folder, *EXPECTED)
