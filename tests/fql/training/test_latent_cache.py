"""Cached latents: equal to the encoder's, without an effect on the training."""

import csv
import dataclasses
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.files import locked
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store import latents as latent_store
from data_pipeline.store.writer import write_store
from encoders.description import SavedEncoder
from encoders.impala import ENCODERS
from fql.agents.configs import EncoderConfig, FQLConfig
from fql.envs.tasks import QUICKSTART_TASK
from fql.errors import FQLError
from fql.pretraining.saved_encoders import save_encoder_folder
from fql.runs.progress import progress_bar
from fql.runs.run_folder import finished_steps
from fql.settings.train_config import TrainConfig
from fql.training import latent_cache
from fql.training.latent_cache import cache_place, cached_data
from fql.training.training_data import LabelledSplit, spec_of, training_batches
from scripts.benchmark.latents import compare_caching, first_trajectories

SHAPE, STACK, WIDTH = (32, 32, 3), 3, 512
LENGTHS = {'train': (2, 9, 1 + STACK, 7, 2), 'val': (11,)}
FROZEN = TrainConfig(
    task='t',
    batch_size=8,
    frame_stack=STACK,
    shift_probability=0.0,
    agent=FQLConfig(
        hidden_dims=(8,),
        encoder=EncoderConfig(size='impala_debug', source='/e', mode='frozen'),
    ),
)
ENCODER = ENCODERS['impala_debug']


@pytest.fixture(scope='module')
def encoder():
    images = jax.ShapeDtypeStruct((1, *SHAPE[:2], SHAPE[2] * STACK), jnp.uint8)
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), images)['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 4, shapes)


@pytest.fixture(scope='module')
def apply_encoder(encoder):
    return jax.jit(lambda images: ENCODER.apply({'params': encoder}, images))


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for name, lengths in LENGTHS.items():
        terminals = np.zeros(sum(lengths), bool)
        terminals[np.cumsum(lengths) - 1] = True
        np.savez(
            tmp_path / f'd{"-val" if name == "val" else ""}.npz',
            observations=rng.integers(0, 256, (sum(lengths), *SHAPE), np.uint8),
            actions=rng.uniform(-1, 1, (sum(lengths), 2)).astype(np.float32),
            terminals=terminals,
        )
    store = write_store(tmp_path / 'd', 'd', npz_splits(tmp_path / 'd.npz'))
    return {
        name: LabelledSplit(
            split,
            np.arange(len(split.terminals), dtype=np.float32),
            np.ones_like(split.terminals, np.float32),
        )
        for name, split in store.splits.items()
    }


def encode_rows(apply_encoder, frames, lengths):
    """Latents of all rows, trajectory by trajectory, as the definition of a stack says."""
    stacks, end = [], 0
    for length in lengths:
        rows = frames[end : end + length]
        end += length
        for t in range(length):
            stack = [rows[max(t - k, 0)] for k in reversed(range(STACK))]
            stacks.append(np.concatenate(stack, axis=-1))
    return np.asarray(apply_encoder(np.stack(stacks)))


def test_latents_are_those_of_every_row_and_split(data, encoder, apply_encoder):
    spec = spec_of(data['train'], FROZEN)
    cached = cached_data(data, spec, encoder)
    assert cached.keys() == data.keys()
    for name, labelled in cached.items():
        expected = encode_rows(apply_encoder, data[name].split.observations, LENGTHS[name])
        assert labelled.split.observations.dtype == np.float32
        np.testing.assert_allclose(labelled.split.observations, expected, rtol=1e-4, atol=1e-5)
        assert len(np.unique(expected, axis=0)) > len(expected) - 2 * len(LENGTHS[name])

    # The loader gives the latents of exactly the rows whose images it would give.
    for step, images, latents in zip(
        range(3),
        training_batches(data['train'], FROZEN, 5),
        training_batches(cached['train'], FROZEN, 5),
        strict=False,
    ):
        for name in ('indices', 'actions', 'rewards', 'masks'):
            np.testing.assert_array_equal(latents[name], images[name], err_msg=str(step))
        all_latents = cached['train'].split.observations
        both = np.stack([images['indices'], images['indices'] + 1], axis=1)
        np.testing.assert_array_equal(latents['inputs'], all_latents[both])

    # Float16 in another folder; and nothing is computed twice.
    half = dataclasses.replace(spec, config=dataclasses.replace(FROZEN, latent_cache='float16'))
    split = cached_data(data, half, encoder)['train'].split
    assert split.observations.dtype == np.float16
    assert split.path != cached['train'].split.path
    np.testing.assert_allclose(
        split.observations, cached['train'].split.observations, rtol=1e-3, atol=1e-6
    )
    before = (split.path / 'observations.npy').stat().st_mtime_ns
    cached_data(data, half, encoder)
    assert (split.path / 'observations.npy').stat().st_mtime_ns == before

    huge = jax.tree.map(lambda leaf: leaf * 100, encoder)
    with pytest.raises(FQLError, match='not finite in float16'):
        cached_data(data, half, huge)


def test_another_encoder_or_stack_has_another_folder(data, encoder):
    def place(config=FROZEN, encoder=encoder):
        return cache_place(data, spec_of(data['train'], config), encoder)[0]

    other = jax.tree.map(lambda leaf: leaf + 1, encoder)
    stack = dataclasses.replace(FROZEN, frame_stack=1)
    agent = dataclasses.replace(FROZEN.agent, precision='bfloat16')
    places = [
        place(),
        place(encoder=other),
        place(stack),
        place(dataclasses.replace(FROZEN, agent=agent)),
        place(dataclasses.replace(FROZEN, latent_cache='float16')),
    ]
    assert len(set(places)) == len(places)
    assert place(dataclasses.replace(FROZEN, seed=1)) == place()  # nothing is drawn


@pytest.fixture
def read_only(tmp_path):
    """A function that makes a folder read-only; chmod does not, for root."""
    mounted = []

    def mount(folder):
        for options in ('bind', 'remount,ro,bind'):
            command = ['mount', '-o', options, str(folder), str(folder)]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                pytest.skip('nothing can be mounted')
            mounted.append(folder)

    yield mount
    for folder in mounted[:1]:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def test_in_a_read_only_folder_complete_latents_are_read(data, encoder, read_only, tmp_path):
    spec = spec_of(data['train'], FROZEN)
    expected = cached_data(data, spec, encoder)['train'].split.observations
    read_only(tmp_path / 'd')
    found = cached_data(data, spec, encoder)['train'].split.observations
    np.testing.assert_array_equal(found, expected)
    half = dataclasses.replace(spec, config=dataclasses.replace(FROZEN, latent_cache='float16'))
    with pytest.raises(DataError, match=r'written: Read-only file system; --latent-cache off'):
        cached_data(data, half, encoder)


def test_an_interrupted_cache_is_continued(data, encoder, monkeypatch):
    spec = spec_of(data['train'], dataclasses.replace(FROZEN, batch_size=3))
    whole = cached_data(data, spec, encoder)['train'].split.path / 'observations.npy'
    expected = whole.read_bytes()
    shutil.rmtree(whole.parents[1])
    monkeypatch.setattr(latent_store, 'RECORD_ROWS', 1)
    read_block, blocks_read = latent_cache.read_block, []

    def fail(*arguments):
        blocks_read.append(arguments[2])
        if len(blocks_read) == 6:
            raise KeyboardInterrupt
        return read_block(*arguments)

    monkeypatch.setattr(latent_cache, 'read_block', fail)
    with pytest.raises(KeyboardInterrupt):
        cached_data(data, spec, encoder)
    there = json.loads((whole.parent / 'progress.json').read_text())['rows']
    assert 0 < there < sum(LENGTHS['train'])
    cached_data(data, spec, encoder)
    assert whole.read_bytes() == expected
    blocks = -(-sum(LENGTHS['train']) // 3) + -(-sum(LENGTHS['val']) // 3)
    assert len(blocks_read) < 6 + blocks


def test_time_left_is_counted_from_the_second_batch(data, encoder, monkeypatch):
    """The first one waits for the compilation."""
    bars = []

    def noted(*arguments, **settings):
        bars.append(progress_bar(*arguments, **settings))
        return bars[-1]

    monkeypatch.setattr(latent_cache, 'progress_bar', noted)
    cached_data({'train': data['train']}, spec_of(data['train'], FROZEN), encoder)
    assert [(bar.initial, bar.n) for bar in bars] == [(FROZEN.batch_size, sum(LENGTHS['train']))]


def test_the_benchmark_caches_the_first_trajectories(data):
    split = first_trajectories(data['train'].split, sum(LENGTHS['train'][:3]) + 1)
    np.testing.assert_array_equal(split.lengths, LENGTHS['train'][:3])
    report = compare_caching(split, spec_of(data['train'], FROZEN), rounds=2)
    assert report['rows'] == sum(LENGTHS['train'][:3])
    ratios = [a / b for a, b in zip(*report['seconds'].values(), strict=True)]
    assert report['throughput_against_encoder_alone'] == pytest.approx(np.mean(ratios))
    with pytest.raises(DataError, match='the first trajectory has 2 rows, more than 1'):
        first_trajectories(data['train'].split, 1)


def test_who_comes_second_waits(data, encoder, capfd):
    spec = spec_of(data['train'], FROZEN)
    folder, recipe = cache_place(data, spec, encoder)
    latent_store.make_latent_folder(folder, recipe)
    found = []
    other = threading.Thread(target=lambda: found.append(cached_data(data, spec, encoder)))
    printed = ''
    with locked(folder / 'lock', 'computes'):
        other.start()
        deadline = time.monotonic() + 120
        while 'waiting for it' not in printed and time.monotonic() < deadline:
            time.sleep(0.02)
            printed += capfd.readouterr().out
        assert not (folder / 'train').exists()
    other.join(120)
    assert 'waiting for it' in printed
    assert found[0]['train'].split.observations.shape == (sum(LENGTHS['train']), WIDTH)


@pytest.fixture(scope='module')
def saved(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoders') / 'e'
    described = SavedEncoder('impala_debug', SHAPE, STACK, 'o', 'dataset-d', 77)
    save_encoder_folder(folder, encoder, described)
    return folder


def settings(saved, *more):
    return (
        *('train', '--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8),
        *(
            '--eval-interval',
            0,
            '--log-interval',
            1,
            '--encoder',
            'impala_debug',
            '--flow-steps',
            1,
        ),
        *('--frame-stack', STACK, '--shift-probability', 0),
        *('--encoder.from', saved, '--encoder.mode', 'frozen', *more),
    )


def losses(run):
    with (run / 'train.csv').open() as file:
        return [float(row['loss']) for row in csv.DictReader(file)]


@pytest.mark.long
def test_the_same_command_gives_the_same_losses_with_and_without_cache(
    run_fql, prepared, saved, tmp_path, monkeypatch
):
    folder, cached, direct = tmp_path / 'e', tmp_path / 'cached', tmp_path / 'direct'
    shutil.copytree(saved, folder)
    monkeypatch.chdir(tmp_path)
    done = run_fql(*settings('e', '--steps', 1, '--run-dir', cached))
    assert done.returncode == 0, done.stderr
    assert f'frozen, from {folder} (o on dataset-d, 77 updates)' in done.stdout
    assert 'latents: float32, 1 MB in ' in done.stdout
    done = run_fql(*settings('e', '--steps', 1, '--run-dir', direct, '--latent-cache', 'off'))
    assert done.returncode == 0, done.stderr
    # The saved encoder is no longer needed.
    shutil.rmtree(folder)
    for run, source in [(cached, 'float32, 1 MB in'), (direct, 'computed in every update')]:
        done = run_fql('train', '--resume', run, '--steps', 6)
        assert done.returncode == 0, done.stderr
        assert f'latents: {source}' in done.stdout
    assert len(losses(cached)) == 6
    np.testing.assert_allclose(losses(cached), losses(direct), rtol=1e-4)


@pytest.fixture
def own_store(prepared, environment, tmp_path):
    """A copy of the prepared dataset, without latents."""
    store = tmp_path / 'data' / prepared
    shutil.copytree(Path(environment['FQL_DATA_DIR']) / prepared, store)
    shutil.rmtree(store / 'latents', ignore_errors=True)
    return store


def damage(path):
    with path.open('r+b') as file:
        file.seek(-1, 2)
        [byte] = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))


@pytest.mark.long
def test_damaged_latents_stop_a_run(fql, assert_one_line, own_store, saved, tmp_path):
    run, data = tmp_path / 'run', ('--data-dir', own_store.parent)
    done = fql(*settings(saved, '--steps', 1, '--run-dir', run, *data))
    assert done.returncode == 0, done.stderr
    [path] = own_store.glob('latents/*/train/observations.npy')
    damage(path)
    done = fql('train', '--resume', run, '--steps', 6)
    assert done.returncode == 1
    assert f'fql: {path} is not what was written' in done.stderr.splitlines()[-1]
    assert finished_steps(run / 'checkpoints') == [0, 1]
    done = fql('inspect', 'data', own_store.name, '--verify', *data)
    assert_one_line(done, str(path), 'delete')


def test_no_latents_are_computed_from_damaged_frames(fql, own_store, saved, tmp_path):
    path = own_store / 'train' / 'observations.npy'
    damage(path)
    run, data = tmp_path / 'run', ('--data-dir', own_store.parent)
    done = fql(*settings(saved, '--steps', 1, '--run-dir', run, *data))
    assert done.returncode == 1
    assert f'fql: {path} is not what was written' in done.stderr.splitlines()[-1]
    assert not list(own_store.glob('latents/*/*/observations.npy'))


def test_what_cannot_be_is_refused_in_one_line(
    run_fql, assert_one_line, prepared, saved, tmp_path, monkeypatch
):
    run = tmp_path / 'run'
    done = run_fql(*settings(saved, '--encoder', 'impala_small', '--run-dir', run))
    assert_one_line(done, 'encoder: saved impala_debug, expected impala_small')
    done = run_fql(*settings(saved, '--frame-stack', 1, '--run-dir', run))
    assert_one_line(done, 'frame_stack: saved 3, expected 1')
    assert_one_line(run_fql(*settings(tmp_path, '--run-dir', run)), 'is not a saved encoder')
    monkeypatch.setattr(latent_cache.shutil, 'disk_usage', lambda path: SimpleNamespace(free=4))
    done = run_fql(*settings(saved, '--latent-cache', 'float16', '--run-dir', run))
    assert_one_line(done, 'bytes of disk', ' are free', '--latent-cache')
    assert not run.exists()
