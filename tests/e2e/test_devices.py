"""Data-parallel training: on 8 virtual devices, in 2 processes, and back on 1."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from encoders.description import read_encoder
from encoders.saved import load_encoder
from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_folder import finished_steps
from fql.stopping import EXIT_CODE

SETTINGS = (
    *('--task', QUICKSTART_TASK, '--batch-size', 16, '--flow-steps', 1, '--hidden-dims', 256),
    *('--eval-interval', 0, '--log-interval', 1, '--save-interval', 4),
)
EIGHT = {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('prepared')]


def losses(run):
    with (run / 'train.csv').open() as file:
        return np.array([float(row['loss']) for row in csv.DictReader(file)])


def finish(*processes):
    for process in processes:
        output, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    return output


@pytest.fixture(scope='module')
def on_one_device(fql_process, prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp('one') / 'run'
    done = fql_process('train', *SETTINGS, '--steps', 8, '--run-dir', run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.long
def test_eight_devices_give_the_losses_of_one(start_fql, on_one_device, tmp_path):
    run = tmp_path / 'run'
    # With the large parameters sharded over the devices, and the small ones replicated.
    spread = ('--shard-params', '--steps', 4, '--run-dir', run)
    finish(start_fql('train', *SETTINGS, *spread, **EIGHT))
    # Saved on 8, continued on 1, and back on 8.
    finish(start_fql('train', '--resume', run, '--no-shard-params', '--steps', 8))
    np.testing.assert_allclose(losses(run), losses(on_one_device), rtol=1e-4, atol=1e-5)
    finish(start_fql('train', '--resume', run, '--steps', 10, **EIGHT))
    assert finished_steps(run / 'checkpoints') == [4, 8, 10]


SPREAD = """
import dataclasses, jax, numpy as np
from fql.agents.configs import EncoderConfig, FQLConfig
from fql.compiled import abstract_state, initial_state, make_train_step
from fql.settings.train_config import TrainConfig
from fql.devices import LARGE, make_mesh, put_batch
from fql.runs.run_spec import RunSpec
from fql.runs.run_learner import batch_preparer, make_learner

encoder = EncoderConfig(size='impala_debug')
agent = FQLConfig(hidden_dims=(256, 256), flow_steps=1, encoder=encoder)
config = TrainConfig(task='', frame_stack=1, shard_params=True, agent=agent)
spec, mesh = RunSpec(config, (8, 8, 3), 'uint8', 2), make_mesh()
arrays = {
    'inputs': np.zeros((8, 2, 8, 8, 3), np.uint8),
    'actions': np.zeros((8, 2), np.float32),
    'rewards': np.zeros(8, np.float32),
    'masks': np.zeros(8, np.float32),
}
learner = make_learner(spec)
state = initial_state(learner, 0, mesh, shard_params=True)
train_step = make_train_step(learner, batch_preparer(spec), abstract_state(learner, mesh, True))
for _ in range(3):
    leaves = jax.tree.leaves(dataclasses.replace(state, key=None))
    sizes = {leaf.size // leaf.addressable_data(0).size for leaf in leaves if leaf.size >= LARGE}
    assert sizes == {8}, sizes
    assert all(leaf.is_fully_replicated for leaf in leaves if leaf.size < LARGE)
    state, _ = train_step(state, [put_batch(arrays, mesh)])
"""


@pytest.mark.long
def test_large_parameters_are_spread_and_stay_so(run_python, monkeypatch):
    for name, value in EIGHT.items():
        monkeypatch.setenv(name, value)
    done = run_python(SPREAD)
    assert done.returncode == 0, done.stderr


def two_commands(*arguments):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    together = ('--coordinator', f'127.0.0.1:{port}', '--num-processes', 2, '--process-id')
    return [(*arguments, *together, i) for i in range(2)]


def start_two(start_fql, *arguments):
    return [start_fql(*command) for command in two_commands(*arguments)]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_signal_to_one_of_two_processes_stops_both(start_fql, wait_for_checkpoint, tmp_path):
    run = tmp_path / 'run'
    settings = ('--steps', 100_000, '--log-interval', 0, '--run-dir', run)
    processes = start_two(start_fql, 'train', *SETTINGS, *settings)
    wait_for_checkpoint(processes[0], run, 4)
    processes[1].send_signal(signal.SIGTERM)
    output, errors = processes[0].communicate(timeout=250)
    assert processes[0].returncode == EXIT_CODE, errors
    _, errors = processes[1].communicate(timeout=250)
    assert processes[1].returncode == EXIT_CODE, errors
    step = CheckpointReader(run / 'checkpoints').find(None)
    assert f'stopped; update {step:,} is saved' in output
    # Together again, until one of them is killed.
    processes = start_two(start_fql, 'train', '--resume', run)
    wait_for_checkpoint(processes[0], run, step + 8)
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=250)
    # Where Orbax waits for the other one, JAX aborts it after its own limit of 100 s.
    assert processes[0].returncode in (1, -signal.SIGABRT), errors
    if processes[0].returncode == 1:
        assert 'fql: another process of this run has ended' in errors
        assert 'Traceback' not in errors
    latest = CheckpointReader(run / 'checkpoints').find(None)
    finish(*start_two(start_fql, 'train', '--resume', run, '--steps', latest + 4))


@pytest.mark.long
def test_processes_with_other_settings_are_refused(start_fql, tmp_path):
    run = tmp_path / 'run'
    processes = [
        start_fql(*command, '--seed', i)
        for i, command in enumerate(two_commands('train', *SETTINGS, '--run-dir', run))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 1
        assert 'fql: process 1 has other settings or other data than the first one' in errors
    assert not run.exists()


@pytest.mark.long
def test_two_processes_give_the_losses_of_one(fql, start_fql, on_one_device, tmp_path):
    run = tmp_path / 'run'
    finish(*start_two(start_fql, 'train', *SETTINGS, '--steps', 4, '--run-dir', run))
    finish(start_fql('train', '--resume', run, '--steps', 8))
    np.testing.assert_allclose(losses(run), losses(on_one_device), rtol=1e-4, atol=1e-5)
    assert json.loads(fql('inspect', 'checkpoint', run).stdout)['step'] == 8


@pytest.mark.long
def test_two_processes_stop_together_on_damaged_data(start_fql, prepared, environment, tmp_path):
    store, run = tmp_path / prepared, tmp_path / 'run'
    shutil.copytree(Path(environment['FQL_DATA_DIR']) / prepared, store)
    path = store / 'train' / 'observations.npy'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    arguments = ('--steps', 4, '--run-dir', run, '--data-dir', tmp_path)
    for process in start_two(start_fql, 'train', *SETTINGS, *arguments):
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 1
        assert f'fql: {path} is not what was written' in errors
        assert 'Traceback' not in errors
    assert finished_steps(run / 'checkpoints') == [0]  # No update has this number.


@pytest.mark.long
def test_two_processes_pretrain_the_encoder_of_one(fql, start_fql, assert_one_line, tmp_path):
    settings = (
        *('--dataset', 'visual-pointmaze-quickstart-navigate-v0', '--encoder', 'impala_debug'),
        *('--objective', 'self_prediction', '--frame-stack', 1, '--batch-size', 16),
        *('--hidden-dims', 16, '--log-interval', 1, '--save-interval', 2, '--steps', 4),
    )
    one, two = tmp_path / 'one', tmp_path / 'two'
    assert fql('pretrain', *settings, '--run-dir', one).returncode == 0
    finish(*start_two(start_fql, 'pretrain', *settings, '--run-dir', two))
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4, atol=1e-5)
    saved = [read_encoder(run / 'encoder') for run in (one, two)]
    assert dataclasses.replace(saved[0], digest='') == dataclasses.replace(saved[1], digest='')
    trees = [load_encoder(run / 'encoder', 'impala_debug', (32, 32, 3), 1) for run in (one, two)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *trees)
    arguments = ('--coordinator', '127.0.0.1:1', '--num-processes', 2)
    assert_one_line(fql('pretrain', *settings, *arguments), 'several processes need --run-dir')


def test_the_first_process_listens_where_it_is_asked_to_only(start_fql, tmp_path):
    first, second = start_two(start_fql, 'train', *SETTINGS, '--run-dir', tmp_path / 'run')
    second.kill()
    port = int(str(first.args[first.args.index('--coordinator') + 1]).rpartition(':')[2])
    deadline = time.monotonic() + 60
    while not accepts('127.0.0.1', port):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The machine's address too, which a port on all interfaces accepts.
    assert not accepts('127.0.0.2', port)


def accepts(host, port):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_a_batch_that_the_devices_cannot_share_is_refused(start_fql, tmp_path):
    run = tmp_path / 'run'
    process = start_fql('train', *SETTINGS, '--batch-size', 12, '--run-dir', run, **EIGHT)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 1
    assert 'batch-size 12 is not a multiple of the 8 devices' in errors
    assert not run.exists()
