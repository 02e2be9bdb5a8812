"""Pretraining as a user runs it: resumed, probed, exported; and its errors."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from einops import reduce
from flax import linen as nn

from data_pipeline.store.frame_store import open_store
from encoders.description import read_encoder
from encoders.impala import ENCODERS
from encoders.leaves import tree_digest
from encoders.saved import load_encoder
from fql.agents.configs import EncoderConfig, FQLConfig
from fql.compiled import abstract_state, initial_state
from fql.devices import one_device_mesh
from fql.envs.tasks import QUICKSTART_TASK
from fql.pretraining.export_encoder import read_pretrained
from fql.pretraining.pretrain import write_final_encoder
from fql.pretraining.pretrain_config import read_pretrain_spec
from fql.pretraining.pretrain_learner import make_pretraining_learner
from fql.pretraining.probe import probe
from fql.runs.checkpoints import CheckpointReader, CheckpointWriter
from fql.runs.interruption import Interrupted, Interruption
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import RunSpec, read_identity, write_spec
from fql.settings.train_config import TrainConfig
from fql.stopping import EXIT_CODE

DATASET = 'visual-pointmaze-dots-v0'
SETTINGS = (
    *('--dataset', DATASET, '--objective', 'temporal_contrast', '--encoder', 'impala_debug'),
    *('--frame-stack', 2, '--horizon', 3, '--hidden-dims', 8, '--batch-size', 8, '--steps', 4),
    *('--log-interval', 1, '--save-interval', 2, '--keep-latest', 9),
)


class LinearEncoder(nn.Module):
    """Compiles at once."""

    dtype: Any = np.float32
    plain: bool = False

    @nn.compact
    def __call__(self, images):
        return nn.Dense(8, name='dense')(images.reshape(len(images), -1) / 255)


@pytest.fixture
def small_encoder(monkeypatch):
    monkeypatch.setitem(ENCODERS, 'impala_debug', LinearEncoder())


@pytest.fixture(scope='module')
def dots(run_fql, tmp_path_factory):
    """A prepared dataset, with validation: a dot moves, and qpos is its position."""
    folder = tmp_path_factory.mktemp('dots')
    for seed, (name, rows) in enumerate({'dots.npz': 160, 'dots-val.npz': 80}.items()):
        rng = np.random.default_rng(seed)
        steps = rng.integers(-1, 2, (rows, 2))
        place = 1 + np.abs((np.cumsum(steps, axis=0) + 7) % 26 - 13)
        frames = np.zeros((rows, 16, 16, 3), np.uint8)
        for i, (row, column) in enumerate(place):
            frames[i, row - 1 : row + 2, column - 1 : column + 2] = 200
        actions = np.concatenate([steps[1:], steps[:1]]).astype(np.float32)
        np.savez(
            folder / name,
            observations=frames,
            actions=actions,
            terminals=np.arange(rows) % 40 == 39,
            qpos=place.astype(np.float32),
            qvel=np.zeros((rows, 2), np.float32),
        )
    done = run_fql('prepare', DATASET, '--source', folder / 'dots.npz')
    assert done.returncode == 0, done.stderr
    return DATASET


def state_of(folder, step):
    run = RunFolder(folder)
    learner = make_pretraining_learner(read_pretrain_spec(run))
    abstract = abstract_state(learner, one_device_mesh())
    return CheckpointReader(run.checkpoints).restore(abstract, step)


@pytest.mark.usefixtures('small_encoder')
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    assert_one_line, run_fql, dots, environment, tmp_path, monkeypatch
):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    done = run_fql('pretrain', *SETTINGS, '--run-dir', whole)
    assert done.returncode == 0, done.stderr
    assert f'--encoder.from {whole / "encoder"} --encoder.mode frozen' in done.stdout
    params = load_encoder(whole / 'encoder', 'impala_debug', (16, 16, 3), 2)
    assert tree_digest(params) == tree_digest(state_of(whole, 4).params['encoder'])
    assert finished_steps(whole / 'checkpoints') == [0, 2, 4]
    header, *rows = (whole / 'train.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == list('1234')
    for name in ('validation/features/effective_rank', 'validation/loss', 'features/std'):
        assert name in header.split(',')

    # As after a kill: with rows of metrics later than its last checkpoint.
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / 'encoder')
    shutil.rmtree(broken / 'checkpoints' / '4')
    # It is resumed, stopped after step 3, and resumed again.
    with monkeypatch.context() as patch:

        def stop(_, step):
            if step == 3:
                raise Interrupted

        patch.setattr(Interruption, 'raise_if_requested', stop)
        done = run_fql('pretrain', '--resume', broken)
        assert done.returncode == EXIT_CODE, done.stderr
        assert f'fql pretrain --resume {broken}' in done.stdout
    assert finished_steps(broken / 'checkpoints') == [0, 2, 3]
    assert not (broken / 'encoder').exists()
    done = run_fql('pretrain', '--resume', 'auto', '--run-dir', broken, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert tree_digest(state_of(broken, 4)) == tree_digest(state_of(whole, 4))
    assert read_encoder(broken / 'encoder') == read_encoder(whole / 'encoder')
    assert (broken / 'train.csv').read_text() == (whole / 'train.csv').read_text()
    # The comparison can fail.
    assert tree_digest(state_of(broken, 3)) != tree_digest(state_of(whole, 4))

    assert_one_line(run_fql('pretrain', *SETTINGS, '--run-dir', whole), f'--resume {whole}')
    done = run_fql('pretrain', '--resume', whole, '--horizon', 2)
    assert_one_line(done, 'horizon: stored 3, asked 2')
    assert_one_line(run_fql('train', '--resume', whole), 'is not a run folder')

    # A run of another length replaces its encoder; those of earlier steps can be exported.
    config = dataclasses.replace(read_pretrain_spec(RunFolder(whole)).config, steps=2)
    spec = dataclasses.replace(read_pretrain_spec(RunFolder(whole)), config=config)
    params, _ = read_pretrained(RunFolder(whole), spec, 2)
    write_final_encoder(RunFolder(whole), spec, params)
    assert read_encoder(whole / 'encoder').step == 2
    done = run_fql('export-encoder', whole, '--step', 4, '--out', tmp_path / 'four')
    assert done.returncode == 0, done.stderr
    assert read_encoder(tmp_path / 'four') == read_encoder(broken / 'encoder')

    done = run_fql('probe', whole / 'encoder')
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert lines['saved'] == ['random', 'pixels']
    scores = {name: [float(x) for x in lines[name]] for name in ('position', 'qpos[0]', 'qpos[1]')}
    assert scores['position'][2] > 0.9  # The pixels determine the position of the dot.
    np.testing.assert_allclose(
        scores['position'], np.mean([scores['qpos[0]'], scores['qpos[1]']], axis=0), atol=2e-3
    )
    assert_one_line(run_fql('probe', whole / 'encoder', '--target', 5), 'columns 0 to 1')
    shutil.copytree(Path(environment['FQL_DATA_DIR']) / dots, tmp_path / dots)
    with (tmp_path / dots / 'val' / 'qpos.npy').open('r+b') as file:
        file.seek(-4, os.SEEK_END)
        file.write(bytes(4))
    done = run_fql('probe', whole / 'encoder', '--data-dir', tmp_path)
    assert_one_line(done, 'qpos.npy is not what was written')

    # A finished run does not hand out an encoder that cannot be loaded.
    shutil.rmtree(broken / 'encoder' / 'params')
    assert_one_line(run_fql('pretrain', '--resume', broken), 'damaged encoder')


@pytest.mark.usefixtures('small_encoder')
@pytest.mark.parametrize('sharing', ['shared', 'separate'])
def test_the_encoder_of_an_agent(assert_one_line, fql, tmp_path, sharing):
    encoder = EncoderConfig(size='impala_debug', sharing=sharing)
    agent = FQLConfig(hidden_dims=(8,), encoder=encoder)
    config = TrainConfig(task=QUICKSTART_TASK, frame_stack=2, agent=agent)
    spec = RunSpec(config, (8, 8, 6), 'uint8', 2)
    run, out = RunFolder(tmp_path / 'run'), tmp_path / 'encoder'
    run.path.mkdir()
    write_spec(run, spec)
    state = initial_state(make_learner(spec), 0, one_device_mesh())
    identity = read_identity(run.spec)
    with CheckpointWriter(run.checkpoints, keep_latest=1, identity=identity) as writer:
        writer.save(dataclasses.replace(state, step=state.step + 9), {'versions': {'a': '1'}})
    done = fql('export-encoder', run.path, '--out', out)
    assert done.returncode == 0, done.stderr
    saved = read_encoder(out)
    name = 'shared' if sharing == 'shared' else 'critic'
    assert saved.digest == tree_digest(state.params['encoders'][name])
    assert (saved.objective, saved.step) == ('fql', 9)
    assert (saved.image_shape, saved.frame_stack) == ((8, 8, 3), 2)
    assert saved.versions == {'a': '1'}
    assert_one_line(fql('export-encoder', run.path, '--out', out), f'{out} exists')
    done = fql('export-encoder', run.path, '--out', tmp_path / 'other', '--step', 4)
    assert_one_line(done, 'no checkpoint of update 4')


def test_what_cannot_be_done_is_reported_in_one_line(
    assert_one_line, fql, dots, prepared, tmp_path
):
    run = tmp_path / 'run'
    done = fql('pretrain', '--dataset', 'nothing-v0', '--run-dir', run)
    assert_one_line(done, 'fql prepare nothing-v0')
    done = fql('pretrain', *SETTINGS, '--run-dir', run, '--batch-size', 1000)
    assert_one_line(done, 'too few for batch_size 1000')
    done = fql('pretrain', *SETTINGS, '--run-dir', run, '--save-interval', 0)
    assert_one_line(done, 'save-interval')
    assert not run.exists()
    for arguments in (('pretrain', '--resume'), ('probe',), ('export-encoder', '--out', run / 'e')):
        done = fql(*arguments, tmp_path)
        assert_one_line(done, str(tmp_path), 'no')
    (tmp_path / 'encoder.json').write_text(json.dumps({'format_version': 99}))
    assert_one_line(fql('probe', tmp_path), 'format version 99')


REAL = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'visual-cube-single-play-v0.npz'


@pytest.mark.long
@pytest.mark.skipif(not REAL.exists(), reason=f'{REAL} is absent: not part of the repository')
@pytest.mark.parametrize(
    ('objective', 'batch_size', 'lr', 'least', 'unexplained'),
    [
        ('inverse_dynamics', 64, 1e-3, 0.85, 0.6),
        ('temporal_contrast', 64, 1e-3, 0.77, 0.85),
        ('self_prediction', 64, 1e-3, 0.8, 0.8),
        ('flow_bc', 128, 3e-4, 0.78, 0.8),
        ('reconstruction', 64, 1e-3, 0.74, 0.96),
    ],
)
def test_robot_and_cube_can_be_read_off_a_pretrained_encoder(
    fql, tmp_path, objective, batch_size, lr, least, unexplained
):
    """Real frames at half their size: the variance that a linear map of latents leaves unexplained.

    At the larger learning rate flow_bc memorises the actions of the few trajectories.
    """
    name, data, run = 'visual-cube-single-play-v0', tmp_path / 'data', tmp_path / 'run'
    for path in (REAL, REAL.with_name(f'{REAL.stem}-val.npz')):
        with np.load(path) as file:
            arrays = dict(file)
        frames = arrays['observations'].astype(np.float32)
        frames = reduce(frames, 'n (h i) (w j) c -> n h w c', 'mean', i=2, j=2)
        np.savez(tmp_path / path.name, **{**arrays, 'observations': frames.astype(np.uint8)})
    source = ('--source', tmp_path / REAL.name, '--data-dir', data)
    assert fql('prepare', name, *source).returncode == 0
    done = fql(
        *('pretrain', '--dataset', name, '--data-dir', data, '--run-dir', run, '--steps', 300),
        *('--objective', objective, '--frame-stack', 1, '--batch-size', batch_size),
        *('--lr', lr, '--log-interval', 100),
    )
    assert done.returncode == 0, done.stderr
    saved = read_encoder(run / 'encoder')
    params = load_encoder(run / 'encoder', 'impala_small', (32, 32, 3), 1)
    # Joints of the arm, both fingers, the cube's position.
    columns = (0, 1, 2, 3, 6, 10, 14, 15, 16)
    result = probe(open_store(data / name), saved, params, columns, rows=1_000)
    trained, fresh = result.scores['saved'], result.scores['random']
    print(f'R^2: {trained.round(3)} trained, {fresh.round(3)} fresh')
    assert trained.mean() > least
    assert (1 - trained).mean() < unexplained * (1 - fresh).mean()
