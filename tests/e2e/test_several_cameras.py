"""The encoder of several cameras and a vector through the program: shared, pretrained, frozen."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from data_pipeline.store.frame_store import open_store
from encoders.cameras import CameraEncoder
from encoders.description import read_encoder
from encoders.impala import ENCODERS
from encoders.saved import load_encoder
from fql.policies.loaded_policy import load_policy

SETTINGS = (
    *('--task', 'own', '--eval-interval', 0, '--batch-size', 8, '--steps', 2, '--log-interval', 1),
    *('--agent', 'bc', '--hidden-dims', 8, '--encoder', 'impala_debug', '--frame-stack', 2),
)
TWINS = (*SETTINGS, '--dataset', 'twins', '--encoder.cameras', 'shared')


class LinearEncoder(nn.Module):
    """Compiles at once."""

    dtype: Any = np.float32
    plain: bool = False

    @nn.compact
    def __call__(self, images):
        return nn.Dense(8, name='dense')(images.reshape(images.shape[0], -1) / 255)


@pytest.fixture(scope='module', autouse=True)
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, 'impala_debug', LinearEncoder())
        yield


def shades(rng, rows, *shape):
    """Images of one shade each."""
    return np.broadcast_to(rng.integers(1, 256, (rows, 1, 1, 1), np.uint8), (rows, *shape))


@pytest.fixture(scope='module', autouse=True)
def twins(run_fql, tmp_path_factory):
    """Datasets `twins`, of two cameras of one size, and `odd`, of two sizes; twins' shapes."""
    rng, rows = np.random.default_rng(0), 60
    folder = tmp_path_factory.mktemp('twins')
    keys = [word for name in ('left', 'right', 'pose') for word in ('--observation-key', name)]
    for name, width in (('twins', 8), ('twins-val', 8), ('odd', 9)):
        pose = rng.normal(size=(rows, 3))
        np.savez(
            folder / f'{name}.npz',
            left=shades(rng, rows, 8, 8, 3),
            right=shades(rng, rows, 8, width, 3),
            pose=pose,
            qpos=pose,
            actions=rng.uniform(-1, 1, (rows, 2)),
            terminals=np.arange(rows) % 20 == 19,
            rewards=np.zeros(rows),
            masks=np.ones(rows),
        )
    for name in ('twins', 'odd'):
        done = run_fql('prepare', name, '--source', folder / f'{name}.npz', *keys)
        assert done.returncode == 0, done.stderr
    return {'left': (8, 8, 3), 'pose': (3,), 'right': (8, 8, 3)}


@pytest.mark.long
def test_one_encoder_for_all_cameras(run_fql, assert_one_line, twins, tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = run_fql('train', *TWINS, '--save-interval', 1, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert 'one for all cameras' in done.stdout
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / 'checkpoints' / '2')
    done = run_fql('train', '--resume', broken, '--encoder.cameras', 'separate')
    assert_one_line(done, "encoder.cameras: stored 'shared', asked 'separate'")
    assert run_fql('train', '--resume', broken).returncode == 0
    digests = [run_fql('inspect', 'checkpoint', path).stdout for path in (whole, broken)]
    assert json.loads(digests[0]) == json.loads(digests[1])
    shown = {
        name: np.full(shape, 3, np.uint8 if len(shape) == 3 else np.float32)
        for name, shape in twins.items()
    }
    done = run_fql('export-policy', whole, '--out', tmp_path / 'policy')
    assert done.returncode == 0, done.stderr
    actions = [load_policy(path)(shown) for path in (whole, tmp_path / 'policy')]
    np.testing.assert_array_equal(*actions)


def test_cameras_of_two_sizes_have_an_encoder_each(run_fql, assert_one_line, tmp_path):
    done = run_fql('train', *TWINS, '--dataset', 'odd', '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'several images of one shape', 'left 8x8x3 uint8', 'right 8x9x3 uint8')


PRETRAIN = (
    *('--dataset', 'twins', '--objective', 'temporal_contrast', '--encoder', 'impala_debug'),
    *('--encoder.cameras', 'shared', '--frame-stack', 2, '--horizon', 3, '--hidden-dims', 8),
    *('--batch-size', 8, '--steps', 2, '--log-interval', 1, '--save-interval', 1),
)


@pytest.fixture(scope='module')
def pretrained(run_fql, twins, tmp_path_factory):
    """A pretraining of the whole encoder of `twins`."""
    folder = tmp_path_factory.mktemp('pretrain') / 'run'
    done = run_fql('pretrain', *PRETRAIN, '--run-dir', folder)
    assert done.returncode == 0, done.stderr
    assert 'left 8x8x6 uint8, pose 6 float32, right 8x8x6 uint8' in done.stdout
    assert f'--encoder.cameras shared --frame-stack 2 --encoder.from {folder}' in done.stdout
    return folder


@pytest.mark.long
def test_a_broken_pretraining_ends_as_one_that_was_not(run_fql, twins, pretrained, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(pretrained, broken)
    shutil.rmtree(broken / 'encoder')
    shutil.rmtree(broken / 'checkpoints' / '2')
    done = run_fql('pretrain', '--resume', broken)
    assert done.returncode == 0, done.stderr
    saved = read_encoder(pretrained / 'encoder')
    assert read_encoder(broken / 'encoder') == saved
    assert (saved.image_shape, saved.frame_stack, saved.cameras) == (twins, 2, 'shared')
    assert (broken / 'train.csv').read_bytes() == (pretrained / 'train.csv').read_bytes()
    done = run_fql('export-encoder', pretrained, '--out', tmp_path / 'first', '--step', 1)
    assert done.returncode == 0, done.stderr
    assert '2 frame(s) of left 8x8x3, pose 3, right 8x8x3' in done.stdout
    assert read_encoder(tmp_path / 'first').digest != saved.digest


@pytest.fixture(scope='module')
def frozen(run_fql, pretrained, tmp_path_factory):
    """Arguments of a run with that encoder, frozen, and the folder of such a run on its latents."""
    arguments = (*TWINS, '--encoder.from', pretrained / 'encoder', '--encoder.mode', 'frozen')
    arguments += ('--shift-probability', 0)
    folder = tmp_path_factory.mktemp('frozen') / 'cached'
    done = run_fql('train', *arguments, '--run-dir', folder)
    assert done.returncode == 0, done.stderr
    assert 'one for all cameras, frozen, from' in done.stdout
    return arguments, folder


@pytest.mark.long
def test_updates_on_latents_are_those_that_encode(run_fql, frozen, tmp_path):
    arguments, cached = frozen
    off = tmp_path / 'off'
    done = run_fql('train', *arguments, '--latent-cache', 'off', '--run-dir', off)
    assert done.returncode == 0, done.stderr
    losses = [
        np.genfromtxt(run / 'train.csv', delimiter=',', names=True)['loss'] for run in (cached, off)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.long
@pytest.mark.usefixtures('frozen')
def test_cached_latents_are_those_of_all_arrays(environment, pretrained, twins):
    encoder = pretrained / 'encoder'
    store = Path(environment['FQL_DATA_DIR']) / 'twins'
    (path,) = store.glob('latents/*/train/observations.npy')
    split = open_store(store).splits['train']
    rows = np.array([0, 7, 20, 21, 59])
    before = np.maximum(rows - 1, split.first_rows[rows])
    stacks = {
        name: np.concatenate([array[before], array[rows]], axis=-1)
        for name, array in split.observations.items()
    }
    params = load_encoder(encoder, 'impala_debug', twins, 2, 'shared')
    module = CameraEncoder(ENCODERS['impala_debug'], shared=True)
    expected = jax.jit(module.apply)({'params': params}, stacks)
    np.testing.assert_allclose(np.load(path)[rows], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_a_finetuned_encoder_and_its_export(run_fql, pretrained, twins, tmp_path):
    run, out = tmp_path / 'run', tmp_path / 'out'
    encoder = ('--encoder.from', pretrained / 'encoder', '--encoder.mode', 'finetune')
    late = ('--encoder.unfreeze-step', 1, '--save-interval', 1)
    done = run_fql('train', *TWINS, *encoder, *late, '--run-dir', run)
    assert done.returncode == 0, done.stderr
    digests = []
    for step in (1, 2):
        done = run_fql('export-encoder', run, '--out', out / str(step), '--step', step)
        assert done.returncode == 0, done.stderr
        saved = read_encoder(out / str(step))
        assert (saved.image_shape, saved.cameras, saved.objective) == (twins, 'shared', 'bc')
        digests.append(saved.digest)
    assert digests[0] == read_encoder(pretrained / 'encoder').digest != digests[1]


def test_an_encoder_of_other_arrays(run_fql, assert_one_line, pretrained, tmp_path):
    to = ('--dataset', 'odd', '--run-dir', tmp_path / 'run')
    encoder = ('--encoder.from', pretrained / 'encoder', '--encoder.mode', 'frozen')
    done = run_fql('train', *SETTINGS, *encoder, *to)
    assert_one_line(done, 'image_shape: saved', "'right': (8, 9, 3)", 'cameras: saved shared')
    done = run_fql('pretrain', *PRETRAIN, *to)
    assert_one_line(done, 'several images of one shape', 'right 8x9x3')
    done = run_fql('pretrain', *PRETRAIN, '--objective', 'reconstruction', *to[2:])
    assert_one_line(done, 'of one image', 'left, pose, right', 'inverse_dynamics')


def test_what_can_be_read_off_an_encoder_of_several_arrays(run_fql, assert_one_line, pretrained):
    done = run_fql('probe', pretrained / 'encoder')
    assert done.returncode == 0, done.stderr
    scores = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if 'qpos[' in line)
    # The pose, which is qpos, is among the pixels' features as it is.
    assert [float(words.split()[2]) for words in scores.values()] == [1.0, 1.0, 1.0]
    assert_one_line(
        run_fql('probe', pretrained / 'encoder', '--dataset', 'odd'), "'right': (8, 9, 3)"
    )
