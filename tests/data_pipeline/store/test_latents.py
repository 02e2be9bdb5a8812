"""The array of latents on disk: continued after a kill, and never used while incomplete."""

import json
import os
import shutil

import numpy as np
import pytest

from data_pipeline.errors import DamagedError
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store import latents as latent_store
from data_pipeline.store.latents import (
    LatentWriter,
    latent_recipe,
    latent_split,
    make_latent_folder,
    stored_latents,
)
from data_pipeline.store.writer import write_store

ROWS, WIDTH = 14, 3
LATENTS = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)

WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from data_pipeline.errors import DamagedError
from data_pipeline.store import latents as latent_store
latent_store.RECORD_ROWS = 5
latents = np.load(sys.argv[2])
with latent_store.LatentWriter(Path(sys.argv[1]), latents.shape, 'float32') as writer:
    for start in range(0, 9, 2):
        writer.append(latents[start : start + 2])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def store(make_arrays, tmp_path):
    np.savez(tmp_path / 'd.npz', **make_arrays())
    return write_store(tmp_path / 'd', 'd', npz_splits(tmp_path / 'd.npz'))


def write(folder, latents=LATENTS):
    with LatentWriter(folder, latents.shape, 'float32') as writer:
        first = writer.rows
        writer.append(latents[first:])
    return first


def test_a_killed_process_loses_what_came_after_its_last_record(store, run_python, tmp_path):
    folder = tmp_path / 'latents'
    np.save(tmp_path / 'latents.npy', LATENTS)
    done = run_python(WRITE_AND_DIE, folder / 'train', tmp_path / 'latents.npy')
    assert done.returncode == -9, done.stderr
    split = store.splits['train']
    assert latent_split(folder, split, WIDTH, 'float32') is None
    assert write(folder / 'train') == 6  # of 10: there is a record after 6
    found = latent_split(folder, split, WIDTH, 'float32')
    np.testing.assert_array_equal(found.observations, LATENTS)
    np.testing.assert_array_equal(found.actions, split.actions)
    assert write(folder / 'train') == len(LATENTS)  # nothing is left to do


def test_what_was_damaged_since_is_written_again(store, monkeypatch, tmp_path):
    monkeypatch.setattr(latent_store, 'RECORD_ROWS', 4)
    folder = tmp_path / 'train'
    with LatentWriter(folder, LATENTS.shape, 'float32') as writer:
        writer.append(LATENTS[:8])
    with (folder / 'observations.npy').open('r+b') as file:
        file.seek(-1, 2)
        file.write(b'\x77')
    assert write(folder) == 0
    np.testing.assert_array_equal(np.load(folder / 'observations.npy'), LATENTS)
    (folder / 'progress.json').write_text('{')
    assert write(folder) == 0


@pytest.mark.parametrize(
    'harm',
    [
        lambda folder: (folder / 'progress.json').unlink(),
        lambda folder: (folder / 'progress.json').write_bytes(b'\xff'),
        lambda folder: (folder / 'progress.json').write_text('[' * 100_000),
        lambda folder: (folder / 'progress.json').write_text('[14]'),
        lambda folder: (folder / 'progress.json').write_text('{"rows": 14}'),
        lambda folder: (folder / 'progress.json').write_text('{"rows": "14", "sha256": ""}'),
        lambda folder: np.save(folder / 'observations.npy', np.asfortranarray(LATENTS)),
        lambda folder: os.truncate(folder / 'observations.npy', 200),
        lambda folder: (folder / 'observations.npy').write_bytes(b'x'),
        lambda folder: (folder / 'observations.npy').unlink(),
    ],
)
def test_latents_that_are_not_whole_are_not_read(store, harm, tmp_path):
    split = store.splits['train']
    write(tmp_path / 'train')
    assert latent_split(tmp_path, split, WIDTH, 'float32') is not None
    for other in [(WIDTH + 1, 'float32'), (WIDTH, 'float16')]:
        assert latent_split(tmp_path, split, *other) is None
    harm(tmp_path / 'train')
    assert latent_split(tmp_path, split, WIDTH, 'float32') is None


def test_latents_of_another_encoder_or_split_are_not_read(store, tmp_path):
    """Their arrays may have the same shape: copies, with their records, are written again."""
    folders = [tmp_path / name for name in ('key', 'other')]
    write(folders[0] / 'train')
    write(folders[1] / 'train', LATENTS + 1)
    shutil.copytree(folders[1] / 'train', folders[0] / 'train', dirs_exist_ok=True)
    assert latent_split(folders[0], store.splits['train'], WIDTH, 'float32') is None
    with pytest.raises(DamagedError, match=r'read: its .* of other/train; delete'):
        stored_latents(folders[0])
    assert write(folders[0] / 'train') == 0
    np.testing.assert_array_equal(np.load(folders[0] / 'train' / 'observations.npy'), LATENTS)


def test_the_recipe_names_data_and_encoding(store):
    recipe = json.loads(latent_recipe(store, {'digest': 'x'}))
    entry = store.manifest.splits['train'].arrays['observations']
    assert recipe['data']['train']['observations'] == entry.sha256
    assert recipe['encoding'] == {'digest': 'x'}
    assert 'terminals' in recipe['data']['train'], 'stacks depend on where trajectories begin'


def test_processes_of_the_same_number_make_the_folder_at_once(tmp_path, monkeypatch):
    """On two hosts, or in two containers, with the same disk."""
    folder, fsync = tmp_path / 'latents', os.fsync

    def other_comes(descriptor):
        monkeypatch.setattr(os, 'fsync', fsync)
        make_latent_folder(folder, 'recipe')

    monkeypatch.setattr(os, 'fsync', other_comes)
    make_latent_folder(folder, 'recipe')
    assert [path.name for path in folder.iterdir()] == ['recipe.json']
    assert (folder / 'recipe.json').read_text() == 'recipe'
