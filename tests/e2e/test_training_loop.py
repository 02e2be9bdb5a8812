"""The training loop with a stub for the agent: what is saved when something fails."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import DamagedError
from fql.compiled import TrainStep
from fql.devices import one_device_mesh
from fql.errors import FQLError
from fql.learner import TrainState
from fql.runs.checkpoints import CheckpointReader, CheckpointWriter
from fql.runs.interruption import Interrupted, Interruption
from fql.runs.metrics_log import MetricsLog, read_csv
from fql.runs.run_folder import RunFolder, finished_steps
from fql.stopping import EXIT_CODE
from fql.training.loop import MUST_BE_FINITE, Trainer, updates_in_call

ROOT = Path(__file__).resolve().parents[2]


NOTHING_TO_VERIFY = SimpleNamespace(check=lambda: None, is_done=lambda: True)


def count_up(state, batches):
    """An update that only counts."""
    step = state.step + len(batches)
    return dataclasses.replace(state, step=step), {
        name: np.zeros(len(batches)) for name in MUST_BE_FINITE
    }


def train(
    path,
    evaluate,
    eval_interval,
    *,
    steps=10,
    save_interval=1,
    log_interval=0,
    train_step=count_up,
    timing_log=None,
    verification=NOTHING_TO_VERIFY,
):
    """Runs some updates with saves; `evaluate` is called with the state and the writer."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params={'w': jnp.zeros(3)},
        target_params={},
        opt_state={},
        key=jax.random.key(0),
    )
    schedule = SimpleNamespace(
        steps=steps,
        log_interval=log_interval,
        eval_interval=eval_interval,
        save_interval=save_interval,
    )
    folder = RunFolder(path)
    with CheckpointWriter(folder.checkpoints, keep_latest=3) as writer, Interruption() as stop:
        trainer = Trainer(
            schedule=schedule,
            mesh=one_device_mesh(),
            folder=folder,
            fields=('x',),
            train_step=TrainStep(lambda state, batches, _: train_step(state, batches), 1),
            validate=lambda state, batch: {},
            val_batches=None,
            evaluate=lambda state: evaluate(state, writer),
            metadata={},
            writer=writer,
            verification=verification,
            train_log=None,
            timing_log=timing_log,
            interruption=stop,
            resume_command='',
        )
        return trainer.train(state, itertools.repeat({'x': np.zeros(1)}), False)[1]


def test_all_goes_well(tmp_path):
    evaluated = []
    assert train(tmp_path, lambda state, _: evaluated.append(int(state.step)), 4) == 0
    assert evaluated == [4, 8, 10]
    assert finished_steps(tmp_path / 'checkpoints') == [8, 9, 10]


def test_an_exception_saves_the_step_it_came_in(tmp_path):
    def die(state, writer):
        raise FQLError('a worker died')

    with pytest.raises(FQLError, match='a worker died'):
        train(tmp_path, die, 4)
    # Step 4 would have been saved after its evaluation.
    assert CheckpointReader(tmp_path / 'checkpoints').find(None) == 4


def test_the_first_checkpoint_waits_for_the_data(tmp_path):
    waited = []

    def wait(progress, between):
        waited.append(finished_steps(tmp_path / 'checkpoints'))

    verification = SimpleNamespace(check=lambda: None, is_done=lambda: bool(waited), wait=wait)
    assert train(tmp_path, None, 0, save_interval=4, verification=verification) == 0
    assert waited == [[0]]  # The state before the first update does not depend on the data.
    assert finished_steps(tmp_path / 'checkpoints') == [4, 8, 10]
    waited.clear()
    assert train(tmp_path / 'b', None, 0, save_interval=0, verification=verification) == 0
    assert len(waited) == 1  # A run that saves nothing also waits for the data.


@pytest.mark.parametrize('found', ['while updating', 'while waiting', 'when another thing fails'])
def test_damaged_data_are_never_trained_into_a_checkpoint(tmp_path, found):
    """Also not by the save after another fault."""
    step = 0

    def count(state, batches):
        nonlocal step
        step += 1
        return count_up(state, batches)

    def check():
        if step >= 3 and found != 'while waiting':
            raise DamagedError('damaged')

    def wait(progress, between):
        if found == 'while waiting':
            raise DamagedError('damaged')

    def die(state, writer):
        nonlocal step
        step = 3
        raise FQLError('a worker died')

    evaluate_at = 2 if found == 'when another thing fails' else 0
    fault = 'a worker died' if evaluate_at else 'damaged'
    with pytest.raises((DamagedError, FQLError), match=fault):
        train(
            *(tmp_path, die, evaluate_at),
            save_interval=5,
            train_step=count,
            verification=SimpleNamespace(check=check, is_done=lambda: False, wait=wait),
        )
    assert finished_steps(tmp_path / 'checkpoints') == [0]


def test_a_signal_does_not_wait_for_the_data(tmp_path):
    """A scheduler gives a stopped job only seconds."""

    def wait(progress, between):
        os.kill(os.getpid(), signal.SIGTERM)
        between()
        pytest.fail('it waits')

    verification = SimpleNamespace(check=lambda: None, is_done=lambda: False, wait=wait)
    assert train(tmp_path, None, 0, save_interval=4, verification=verification) == EXIT_CODE
    assert finished_steps(tmp_path / 'checkpoints') == [0, 4]


def test_a_folder_that_becomes_read_only(small_disk):
    def remount(option):
        subprocess.run(['mount', '-o', f'remount,{option}', str(small_disk)], check=True)

    def make_read_only(state, writer):
        writer.wait()
        remount('ro')

    try:
        with pytest.raises(FQLError, match=r'cannot save update 4 .*Read-only file system'):
            train(small_disk / 'run', make_read_only, 4)
        reader = CheckpointReader(small_disk / 'run' / 'checkpoints')
        assert finished_steps(small_disk / 'run' / 'checkpoints') == [1, 2, 3]
        assert reader.find(None) == 3
    finally:
        remount('rw')


BLOCKED = """
import sys, time
from pathlib import Path
from tests.e2e.test_training_loop import train

def block(state, writer):
    writer.wait()
    print('blocked', flush=True)
    time.sleep(600)

train(Path(sys.argv[1]), block, 4)
"""


def is_caught(process, number):
    """Whether the process has a handler for a signal."""
    status = Path(f'/proc/{process.pid}/status').read_text()
    caught = int(status.split('SigCgt:')[1].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/PID/status')
def test_a_second_signal_leaves_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', BLOCKED, str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == 'blocked\n'
        assert is_caught(process, signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 120
        while is_caught(process, signal.SIGTERM):  # Until the first signal was noted.
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    assert CheckpointReader(tmp_path / 'checkpoints').find(None) == 3


@pytest.mark.long
def test_the_rate_is_that_of_updates_after_the_first_without_evaluations(tmp_path):
    def slow(state, batches):
        time.sleep(4 if int(state.step) == 0 else 0.02)
        return count_up(state, batches)

    folder = RunFolder(tmp_path)
    with MetricsLog(folder.timing_csv, folder.timing_tensorboard, 0) as log:
        train(
            *(tmp_path, lambda state, writer: time.sleep(2), 5),
            log_interval=4,
            train_step=slow,
            timing_log=log,
        )
    rows = read_csv(folder.timing_csv)
    assert [row['step'] for row in rows] == ['4', '8', '10']
    for row in rows:  # With the first update or an evaluation, 2 updates a second at most.
        assert 2 < float(row['timing/updates_per_second']) <= 50


@pytest.mark.parametrize('name', ['loss', 'update/grad_norm'])
def test_the_last_update_is_looked_at_when_nothing_is_due(tmp_path, name):
    """Also its gradient: the loss is that of the parameters before the update."""

    def diverge(state, batches):
        state, metrics = count_up(state, batches)
        return state, {**metrics, name: metrics[name] + (np.nan if int(state.step) == 3 else 0)}

    with pytest.raises(FQLError, match=f'update 3 is not finite .{name} = nan'):
        train(tmp_path, None, 0, steps=3, save_interval=0, train_step=diverge)


@pytest.mark.parametrize('save_interval', [0, 1, 3])
@pytest.mark.parametrize('name', ['params', 'target_params', 'opt_state'])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, save_interval, name):
    """The last update's loss and gradient are those of the state before it."""

    def diverge(state, batches):
        state, metrics = count_up(state, batches)
        if int(state.step) == 3:
            state = dataclasses.replace(state, **{name: {'w': jnp.array([0, jnp.inf, 0])}})
        return state, metrics

    with pytest.raises(FQLError, match=f'the state after update 3 is not finite .*{name}/w'):
        train(tmp_path, None, 0, steps=3, save_interval=save_interval, train_step=diverge)
    assert 3 not in finished_steps(tmp_path / 'checkpoints')


@pytest.mark.parametrize(('start', 'log', 'evaluate', 'save'), [(0, 12, 16, 0), (5, 7, 0, 10)])
def test_calls_of_several_updates_stop_where_something_is_due(start, log, evaluate, save):
    schedule = SimpleNamespace(
        steps=30, log_interval=log, eval_interval=evaluate, save_interval=save
    )
    ends = [start]
    while ends[-1] < schedule.steps:
        count = updates_in_call(schedule, ends[-1], 4)
        assert 1 <= count <= 4
        ends.append(ends[-1] + count)
    assert ends[-1] == schedule.steps
    due = {n for n in range(start + 1, 31) for k in (log, evaluate, save) if k and n % k == 0}
    assert due <= set(ends)
    assert len(ends) < schedule.steps - start  # Some calls do make several.


def test_free_memory_is_given_back_now_and_then(tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr('fql.training.loop.GIVE_BACK_INTERVAL', 4)
    monkeypatch.setattr('fql.training.loop.give_back_freed_memory', lambda: times.append(1))
    assert train(tmp_path, None, 0, save_interval=0) == 0
    assert len(times) == 2  # After the updates 4 and 8 of 10.


def test_several_processes_ask_about_every_step(monkeypatch):
    """All stop at the same step, even if it is not the end of a call of several updates."""
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    asked = []
    monkeypatch.setattr(
        'fql.runs.interruption.multihost_utils.reached_preemption_sync_point',
        lambda step: asked.append(step) or step == 18,
    )
    interruption = Interruption()
    interruption.raise_if_requested(8)
    interruption.raise_if_requested(16)
    with pytest.raises(Interrupted):
        interruption.raise_if_requested(24)
    assert asked == list(range(8, 25))
