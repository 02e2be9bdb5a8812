"""Folders of saved encoders are written atomically."""

import dataclasses

import jax
import numpy as np
import pytest

from encoders.description import SavedEncoder, read_encoder
from encoders.errors import EncoderError
from encoders.impala import ENCODERS
from encoders.leaves import tree_digest
from encoders.saved import load_encoder
from fql.pretraining.saved_encoders import save_encoder_folder

EXPECTED = ('impala_debug', (8, 8, 3), 2)


def described(step=7, shape=(8, 8, 3)):
    return SavedEncoder('impala_debug', shape, 2, 'inverse_dynamics', 'd', step)


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.endswith('.lock')]


@pytest.fixture(scope='module')
def params():
    images = np.zeros((1, 8, 8, 6), np.uint8)
    return jax.jit(ENCODERS['impala_debug'].init)(jax.random.key(0), images)['params']


def test_a_folder_is_replaced_when_asked_only(tmp_path, params):
    folder = tmp_path / 'e'
    save_encoder_folder(folder, params, described(7))
    digest = tree_digest(params)
    assert read_encoder(folder) == dataclasses.replace(described(7), digest=digest)
    with pytest.raises(EncoderError, match='exists; choose another folder or move it away'):
        save_encoder_folder(folder, params, described(8))
    assert read_encoder(folder).step == 7
    save_encoder_folder(folder, params, described(8), replace=True)
    assert read_encoder(folder).step == 8
    jax.tree.map(np.testing.assert_array_equal, load_encoder(folder, *EXPECTED), params)
    assert visible(tmp_path) == ['e']


def test_a_failed_save_leaves_nothing(tmp_path, params, monkeypatch):
    with pytest.raises(EncoderError, match='parameters are not those of impala_debug'):
        save_encoder_folder(tmp_path / 'e', params, described(shape=(16, 16, 3)))
    assert not visible(tmp_path)

    def fail(*_, **__):
        raise OSError('disk full')

    monkeypatch.setattr('encoders.description.json.dumps', fail)
    with pytest.raises(OSError, match='disk full'):
        save_encoder_folder(tmp_path / 'e', params, described())
    assert not visible(tmp_path)
