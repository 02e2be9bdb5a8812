"""Trained policies in a user's program."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fql as fql_package
from data_pipeline.action_range import ActionRange
from encoders.impala import ENCODERS
from encoders.saved import SavedEncoder
from fql.agents.configs import EncoderConfig, QCFQLConfig
from fql.envs.tasks import QUICKSTART_TASK
from fql.errors import FQLError
from fql.policies.loaded_policy import LoadedPolicy, load_policy
from fql.policies.policy import make_act, make_policy
from fql.pretraining.saved_encoders import save_encoder_folder
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_spec
from fql.settings.train_config import TrainConfig

ROOT = Path(__file__).parents[3]
SMALL = (
    *('--task', QUICKSTART_TASK, '--steps', 2, '--eval-interval', 0, '--log-interval', 0),
    *('--batch-size', 8, '--hidden-dims', 8, '--flow-steps', 2, '--frame-stack', 2),
)
OF_JAX = ('jax', 'jaxlib', 'ml_dtypes', 'numpy', 'opt_einsum', 'scipy', 'flatbuffers')
"""What `pip install jax flatbuffers` installs."""
ACT = """
import sys
import numpy as np, fql
policy = fql.load_policy(sys.argv[2])
policy.reset(seed=3)
images = np.load(sys.argv[3])
np.save(sys.argv[4], np.stack([policy(image) for image in images]))
print(*(name for name in sys.argv[1].split(',') if name in sys.modules))
"""
RUN_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[2], 'rb').read())
given = np.load(sys.argv[3])
np.save(sys.argv[4], program.call(given['observations'], given['noise']))
"""


@pytest.fixture(scope='module')
def run(run_fql, prepared, tmp_path_factory):
    """A run that started from a saved encoder."""
    path = tmp_path_factory.mktemp('runs') / 'run'
    saved = SavedEncoder('impala_debug', (32, 32, 3), 2, 'flow_bc', prepared, 1)
    images = np.zeros((1, 32, 32, 6), np.uint8)
    params = ENCODERS['impala_debug'].init(jax.random.key(0), images)['params']
    save_encoder_folder(path.parent / 'encoder', params, saved)
    encoder = ('--encoder.mode', 'finetune', '--encoder.from', path.parent / 'encoder')
    done = run_fql('train', *SMALL, *encoder, '--run-dir', path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope='module')
def exported(run_fql, run):
    done = run_fql('export-policy', run, '--out', run.parent / 'policy')
    assert done.returncode == 0, done.stderr
    assert 'one_step, bc_flow of update 2' in done.stdout
    return run.parent / 'policy'


def images(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape, 32, 32, 3), np.uint8)


def expected_actions(run, frames, seed):
    """Actions of an episode as in evaluations, with the frames stacked here."""
    spec = read_spec(RunFolder(run))
    _, params = restore_params(RunFolder(run), spec, None)
    policy = make_policy(make_act(agent_of(spec)), params, seed)
    found = []
    for t in range(len(frames)):
        stack = np.concatenate([frames[max(t - 1, 0)], frames[t]], axis=-1)
        found.append(policy(stack[None], np.zeros(1, np.int32), np.full(1, t, np.int32))[0, 0])
    return np.stack(found)


def test_it_acts_as_in_evaluations_without_data_or_environments(run_python, run, tmp_path):
    frames = images(4)
    np.save(tmp_path / 'images.npy', frames)
    heavy = 'tensorflow,tensorflow_datasets,mujoco,ogbench,gymnasium'
    done = run_python(ACT, heavy, run, tmp_path / 'images.npy', tmp_path / 'actions.npy')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''
    np.testing.assert_allclose(
        np.load(tmp_path / 'actions.npy'), expected_actions(run, frames, 3), rtol=1e-4, atol=1e-6
    )


def test_settings_of_jax_in_a_users_program_change_no_action(run):
    frames = images(3)
    with (
        jax.enable_x64(True),
        jax.default_prng_impl('rbg'),
        jax.threefry_partitionable(False),
        jax.numpy_rank_promotion('raise'),
        jax.numpy_dtype_promotion('strict'),
        jax.transfer_guard('disallow'),
    ):
        policy = load_policy(run, 'bc_flow')
        actions = np.stack([policy(frame) for frame in frames])
    plain = load_policy(run, 'bc_flow')
    np.testing.assert_array_equal(actions, np.stack([plain(frame) for frame in frames]))
    assert actions.dtype == np.float32


def test_a_batch_is_as_many_episodes(run):
    policy, frames = fql_package.load_policy(run), images(3, 2)
    batch = np.stack([policy(rows) for rows in frames])
    assert batch.shape == (3, 2, 2)
    policy.reset()
    alone = np.stack([policy(rows[0]) for rows in frames])
    np.testing.assert_allclose(batch[:, 0], alone, rtol=1e-4, atol=1e-6)
    # Each row has different noise.
    policy.reset()
    same = policy(np.repeat(frames[0][:1], 2, axis=0))
    assert (same[0] != same[1]).any()


def test_actions_belong_to_the_caller(run):
    policy, frames = fql_package.load_policy(run), images(3)
    actions = [policy(frame).copy() for frame in frames]
    policy.reset()
    for frame, action in zip(frames, actions, strict=True):
        given = policy(frame)
        np.testing.assert_array_equal(given, action)
        given += 1


def test_what_is_exported_acts_as_the_run(run, exported, tmp_path):
    frames = images(3)
    moved = shutil.copytree(exported, tmp_path / 'moved')
    policies = [load_policy(path, 'bc_flow') for path in (run, moved)]
    first, second = (np.stack([policy(frame) for frame in frames]) for policy in policies)
    np.testing.assert_array_equal(first, second)
    description = json.loads((moved / 'policy.json').read_text())
    assert description['step'] == 2
    assert len(description['data']['train']) == 64
    assert json.loads((moved / 'config.json').read_text())['config']['agent']['encoder'] == {
        **{'mode': 'finetune', 'source': 'encoder', 'size': 'impala_debug', 'sharing': 'shared'},
        **{'cameras': 'separate', 'lr_multiplier': 1.0, 'unfreeze_step': 0},
    }


def test_what_is_exported_names_no_folder(run, exported, environment):
    """No folder of the data, of the run, of its encoder, of this code or of its libraries."""
    files = [path for path in exported.rglob('*') if path.is_file()]
    assert {'config.json', 'policy.json', 'README.md', 'bc_flow.stablehlo'} <= {
        path.name for path in files
    }
    for path in files:
        for folder in (
            run.parent,
            environment['FQL_DATA_DIR'],
            Path(fql_package.__file__).parent,
            sys.prefix,
        ):
            assert str(folder).encode() not in path.read_bytes(), path


@pytest.fixture
def only_jax(tmp_path):
    """A folder of installed packages with JAX alone."""
    folder = tmp_path / 'packages'
    folder.mkdir()
    for name in OF_JAX:
        package = Path(importlib.util.find_spec(name).origin).parent
        for path in (package, package.with_name(f'{name}.libs')):
            if path.exists():
                (folder / path.name).symlink_to(path)
    return folder


def test_an_exported_program_needs_jax_alone(run, exported, only_jax, tmp_path):
    spec = read_spec(RunFolder(run))
    _, params = restore_params(RunFolder(run), spec, None)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 2)).astype(np.float32)
    observations = rng.integers(0, 256, (5, 32, 32, 6), np.uint8)
    np.savez(tmp_path / 'given.npz', observations=observations, noise=noise)
    for policy in ('one_step', 'bc_flow'):
        program = exported / f'{policy}.stablehlo'
        done = subprocess.run(
            # Without the installed packages and the current folder.
            [
                *(sys.executable, '-I', '-S', '-c', RUN_PROGRAM, only_jax),
                *(program, tmp_path / 'given.npz', tmp_path / 'actions.npy'),
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        expected = agent_of(spec).act(params, observations, noise, policy)
        np.testing.assert_allclose(
            np.load(tmp_path / 'actions.npy'), expected, rtol=1e-4, atol=1e-5
        )


def test_chunks_are_executed_one_after_the_other():
    agent = QCFQLConfig(
        horizon=3, hidden_dims=(8,), encoder=EncoderConfig(size='impala_debug'), flow_steps=2
    )
    config = TrainConfig(task='', frame_stack=1, agent=agent)
    spec = RunSpec(config, (5,), 'float32', 2)
    params = agent_of(spec).init_params(jax.random.key(0))
    policy = LoadedPolicy(spec, params)
    vectors = np.random.default_rng(0).normal(size=(4, 5))
    actions = [policy(vector) for vector in vectors]
    inner = make_policy(make_act(agent_of(spec)), params, 0)
    for start in (0, 3):
        chunk = inner(
            vectors[start : start + 1].astype(np.float32),
            np.zeros(1, np.int32),
            np.full(1, start, np.int32),
        )[0]
        np.testing.assert_allclose(actions[start], chunk[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        actions[1],
        inner(vectors[:1].astype(np.float32), np.zeros(1, np.int32), np.zeros(1, np.int32))[0][1],
        rtol=1e-5,
        atol=1e-6,
    )
    policy.reset()
    # The remaining actions of the chunk are dropped.
    np.testing.assert_array_equal(policy(vectors[0]), actions[0])


def test_a_row_that_begins_an_episode_forgets_the_last_one():
    """Its frames and the rest of its chunk; the other row goes on."""
    agent = QCFQLConfig(
        horizon=3, hidden_dims=(8,), encoder=EncoderConfig(size='impala_debug'), flow_steps=2
    )
    spec = RunSpec(TrainConfig(task='', frame_stack=2, agent=agent), (10,), 'float32', 2)
    params = agent_of(spec).init_params(jax.random.key(0))
    vectors = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    policy, unbroken = LoadedPolicy(spec, params), LoadedPolicy(spec, params)
    seen = []
    for step, rows in enumerate(vectors):
        if step == 2:
            policy.begin_episodes(np.array([True, False]))
        seen.append(policy(rows))
        np.testing.assert_array_equal(seen[-1][1], unbroken(rows)[1])
    inner = make_policy(make_act(agent_of(spec)), params, 0)
    stack = np.concatenate([vectors[2], vectors[2]], axis=-1)  # Its first observation, twice.
    chunks = inner(stack, np.arange(2, dtype=np.int32), np.full(2, 2, np.int32))
    np.testing.assert_allclose(seen[2][0], chunks[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[3][0], chunks[0][1], rtol=1e-5, atol=1e-6)
    for wrong in (np.array([True]), np.array([1, 0])):
        with pytest.raises(ValueError, match=r'rows must be bool \(2,\)'):
            policy.begin_episodes(wrong)


@pytest.mark.parametrize(
    'observation',
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32, 6), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.float32(1),
    ],
)
def test_another_shape_or_type_is_one_clear_error(run, observation):
    with pytest.raises(ValueError, match=r'must be uint8 \(32, 32, 3\), or a batch of them; got'):
        load_policy(run)(observation)


def test_rows_must_stay_as_many(run):
    policy = load_policy(run)
    policy(images(1, 2)[0])
    with pytest.raises(ValueError, match='the episode began with 2 rows, not 3'):
        policy(images(1, 3)[0])


def test_what_cannot_be_loaded(run, exported, tmp_path, assert_one_line, fql):
    with pytest.raises(FQLError, match='is not a run folder'):
        load_policy(tmp_path)
    with pytest.raises(FQLError, match='has no policy mode; it has one_step, bc_flow'):
        load_policy(run, 'mode')
    with pytest.raises(FQLError, match='policy bc_flow does not choose among candidates, one_step'):
        load_policy(run, 'bc_flow', candidates=2)
    done = fql('evaluate', run, '--policy', 'bc_flow', '--candidates', 2, '--episodes', 1)
    assert_one_line(done, 'policy bc_flow does not choose among candidates')
    damaged = shutil.copytree(exported, tmp_path / 'damaged')
    description = json.loads((damaged / 'policy.json').read_text())
    (damaged / 'policy.json').write_text(json.dumps({**description, 'digest': 'other'}))
    with pytest.raises(FQLError, match='not those that were written'):
        load_policy(damaged)
    with pytest.raises(FQLError, match='has update 2 only, not 1'):
        load_policy(exported, step=1)
    with pytest.raises(TypeError):
        load_policy(run, candidates=2.5)
    with pytest.raises(TypeError):
        load_policy(run, step=2.0)
    assert_one_line(fql('export-policy', run, '--out', exported), f'{exported} exists')
    for words in (('evaluate',), ('inspect', 'checkpoint'), ('train', '--resume')):
        assert_one_line(fql(*words, exported), f'{exported} is an exported policy')
    for command in ('export-policy', 'export-encoder'):
        done = fql(command, run, '--out', run / 'checkpoints' / '9')
        assert_one_line(done, 'checkpoints is for checkpoints alone')
        done = fql(command, run, '--out', tmp_path / 'r\udcff')  # A byte that is no UTF-8.
        assert_one_line(done, 'a folder with what is no UTF-8 in its name')
    odd = shutil.copytree(run, tmp_path / 'r\udcff')
    with pytest.raises(FQLError, match='a folder with what is no UTF-8 in its name'):
        load_policy(odd)
    for folder in (run, exported):
        moved = shutil.copytree(folder, tmp_path / f'[{folder.name}]')
        with pytest.raises(FQLError, match="a folder with '\\[' in its name"):
            load_policy(moved)
    edited = shutil.copytree(exported, tmp_path / 'edited')
    config = json.loads((edited / 'config.json').read_text())
    config['config']['agent']['flow_steps'] = 9
    (edited / 'config.json').write_text(json.dumps(config))
    with pytest.raises(FQLError, match=r'config\.json is not what was written'):
        load_policy(edited)


def test_a_damaged_file_of_parameters_is_named(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / 'damaged')
    name = '_METADATA'
    path = folder / 'params' / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FQLError, match=f'damaged policy: params/{name} is not what was written'):
        load_policy(folder)
    path.unlink()
    with pytest.raises(FQLError, match=f'damaged policy: params/{name}: No such file'):
        load_policy(folder)


def test_the_model_card_says_what_its_programs_take(exported):
    card = (exported / 'README.md').read_text()
    assert '| observations | 32x32x3 uint8 |' in card
    assert 'a batch of 32x32x6 uint8: the last 2 on the last axis, the newest at its end' in card
    assert 'noise: (b, 2) float32' in card


@pytest.mark.long
def test_a_type_checker_knows_the_public_names(tmp_path):
    """And no others."""
    (tmp_path / 'user.py').write_text(
        "import fql\n\nfql.load_policy('run').reset(seed='x')\nfql.other\n"
    )
    flags = ('--follow-imports=silent', '--ignore-missing-imports', '--cache-dir=.mypy_cache')
    done = subprocess.run(
        [sys.executable, '-m', 'mypy', *flags, tmp_path / 'user.py'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'user.py:3: error: Argument "seed" to "reset"' in done.stdout
    assert 'user.py:4: error: Module has no attribute "other"' in done.stdout
    assert 'Found 2 errors' in done.stdout


def test_what_is_exported_names_the_checksums_of_its_files(exported):
    files = json.loads((exported / 'policy.json').read_text())['files']
    paths = (path for path in (exported / 'params').rglob('*') if path.is_file())
    params = [path.relative_to(exported).as_posix() for path in paths]
    assert len(params) > 2
    assert files == {
        name: hashlib.sha256((exported / name).read_bytes()).hexdigest()
        for name in ('config.json', 'one_step.stablehlo', 'bc_flow.stablehlo', *params)
    }


def test_actions_have_the_units_of_the_data():
    agent = QCFQLConfig(horizon=1, hidden_dims=(8,), flow_steps=2)
    config = TrainConfig(task='', frame_stack=1, agent=agent)
    spec = RunSpec(config, (5,), 'float32', 2)
    scaled = dataclasses.replace(spec, action_range=ActionRange((0.0, -4.0), (10.0, 4.0)))
    params = agent_of(spec).init_params(jax.random.key(0))
    vector = np.ones(5, np.float32)
    inner, outer = (LoadedPolicy(s, params)(vector) for s in (spec, scaled))
    np.testing.assert_allclose(outer, [5 + 5 * inner[0], 4 * inner[1]], rtol=1e-5)
    assert outer.dtype == np.float32


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e300])
def test_observations_that_are_not_finite_are_one_clear_error(value):
    agent = QCFQLConfig(horizon=1, hidden_dims=(8,), flow_steps=1)
    spec = RunSpec(TrainConfig(task='', frame_stack=1, agent=agent), (5,), 'float32', 2)
    policy = LoadedPolicy(spec, {})
    with pytest.raises(ValueError, match='holds values that are not finite'):
        policy(np.full(5, value))


@pytest.mark.parametrize('seed', [-1, 2**32, 2**70])
def test_seeds_that_jax_would_take_for_others_are_refused(run, seed):
    with pytest.raises(ValueError, match='seed must lie in'):
        load_policy(run).reset(seed)
