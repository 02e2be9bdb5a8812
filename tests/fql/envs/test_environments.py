"""Environments in workers: seeds, frame stack, faults, ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.action_range import ActionRange
from fql.envs.make import EnvSpec
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError

REPOSITORY = Path(__file__).parents[3]
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
VISUAL = 'fql.envs.pointmaze:visual-pointmaze-quickstart-singletask-v0'
STATES = 'fql.envs.pointmaze:pointmaze-quickstart-singletask-v0'
NO_ACTION = np.zeros(2, np.float32)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    """Spawned processes get this process's sys.path."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def fake(name, **settings):
    return EnvSpec(f'fake_environments:{name}-v0', **settings)


def rollout(workers, worker, seed, steps=6):
    """All outputs of a worker's episode, with the same actions each time."""
    rng = np.random.default_rng(seed)
    seen = [workers.reset({worker: seed})[worker]]
    for _ in range(steps):
        action = rng.uniform(-1, 1, workers.action_dim).astype(np.float32)
        step = workers.step({worker: action})[worker]
        seen.append(step.observation)
    return np.stack(seen)


def test_an_environment_may_write_all_its_observations_into_one_array():
    stacks = []
    for name in ('Counter', 'Reuses'):
        with EnvWorkers(fake(name, frame_stack=3), 1) as workers:
            stacks.append(rollout(workers, 0, seed=1, steps=3))
    np.testing.assert_array_equal(*stacks)


def test_a_seed_determines_what_pythons_generator_draws():
    with EnvWorkers(fake('PythonRandom'), 1) as workers:
        first, again, other = (rollout(workers, 0, seed, steps=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_dictionary_needs_data_of_its_names():
    with pytest.raises(FQLError, match='--observation-key NAME=KEY, for each') as caught:
        EnvWorkers(fake('Named'), 1)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('name', 'limit'), [('Counter', None), ('Grey', 4)])
def test_the_time_limit_is_known(name, limit):
    with EnvWorkers(fake(name, max_episode_steps=limit), 1) as workers:
        assert workers.max_episode_steps == limit


def test_scaled_actions_reach_the_environment_in_its_own_units():
    """`AddedActions` shows the sum of the actions that it was given."""
    scale = ActionRange((0.0, -4.0), (10.0, 8.0))
    with EnvWorkers(fake('AddedActions', action_range=scale), 1) as workers:
        assert workers.action_dim == 2
        workers.reset({0: 0})
        for unit, total in (((-1, -1), (0, -4)), ((1, 0.5), (10, 1)), ((0, 3), (15, 7))):
            # What lies beyond the environment's bounds, 6 for the second, is cut off there.
            step = workers.step({0: np.array(unit, np.float32)})[0]
            np.testing.assert_allclose(step.observation, total, atol=1e-5)
    with pytest.raises(FQLError, match=r'in the data they have shape \(3,\)'):
        EnvWorkers(fake('AddedActions', action_range=ActionRange((0.0,) * 3, (1.0,) * 3)), 1)


def test_actions_that_would_be_scaled_twice_are_refused():
    """As of data in an environment's own units, where it is wrapped in RescaleAction."""
    wide = ActionRange((-2.0, -1.0), (2.0, 1.0))
    with pytest.raises(FQLError, match=r'takes actions in \[-1, 1\], but those of the data range'):
        EnvWorkers(fake('Counter', action_range=wide), 1)
    with EnvWorkers(fake('WideActions', action_range=wide), 1) as workers:
        assert workers.action_dim == 2


@pytest.mark.parametrize('spec', [fake('Counter'), EnvSpec(STATES), EnvSpec(VISUAL)])
def test_an_episode_depends_on_its_seed_only(spec, request):
    if spec.env_id == VISUAL:
        request.getfixturevalue('opengl')
    with EnvWorkers(spec, 2) as workers:
        first = rollout(workers, 0, seed=3)
        other = rollout(workers, 0, seed=4)
        np.testing.assert_array_equal(rollout(workers, 0, seed=3), first)
        rollout(workers, 1, seed=11)
        np.testing.assert_array_equal(rollout(workers, 1, seed=3), first)
    assert not np.array_equal(first, other)


def test_frames_are_stacked_along_channels_oldest_first():
    with EnvWorkers(fake('ImageCounter', frame_stack=3), 1) as workers:
        assert workers.observation_shape == (4, 5, 9)
        assert workers.observation_dtype == np.uint8
        assert workers.action_dim == 2

        def shown(observation):
            assert observation.shape == (4, 5, 9)
            assert observation.dtype == np.uint8
            return observation[0, 0].reshape(3, 3).tolist()

        assert shown(workers.reset({0: 0})[0]) == [[0, 1, 2]] * 3
        assert shown(workers.step({0: NO_ACTION})[0].observation) == [[0, 1, 2]] * 2 + [[1, 2, 3]]
        assert shown(workers.step({0: NO_ACTION})[0].observation) == [
            [0, 1, 2],
            [1, 2, 3],
            [2, 3, 4],
        ]
        assert shown(workers.reset({0: 0})[0]) == [[0, 1, 2]] * 3


def test_vectors_are_float32_and_stacked_end_to_end():
    with EnvWorkers(fake('Counter', frame_stack=2), 1) as workers:
        assert workers.observation_shape == (10,)
        assert workers.observation_dtype == np.float32
        workers.reset({0: 0})
        observation = workers.step({0: NO_ACTION})[0].observation
    assert observation.dtype == np.float32
    assert observation[[0, 5]].tolist() == [0, 1]


def test_time_limit_and_kwargs_reach_the_environment():
    with EnvWorkers(fake('Counter', max_episode_steps=2), 1) as workers:
        workers.reset({0: 0})
        assert not workers.step({0: NO_ACTION})[0].truncated
        assert workers.step({0: NO_ACTION})[0].truncated


def test_a_worker_imports_neither_tensorflow_nor_jax():
    with EnvWorkers(fake('Imports'), 1) as workers:
        tensorflow, jax, flax, env_workers, numpy = workers.reset({0: 0})[0]
    assert (tensorflow, jax, flax) == (0, 0, 0)
    assert (env_workers, numpy) == (1, 1), 'the probe itself does not see what is imported'


def test_the_pointmaze_worker_imports_neither_tensorflow_nor_jax(opengl):
    code = (
        'import sys; from fql.envs.make import EnvSpec, make_env; import fql.envs.workers;'
        f'make_env(EnvSpec({VISUAL!r})).reset(seed=0);'
        'print(sorted({"tensorflow", "jax", "flax"} & set(sys.modules)), "mujoco" in sys.modules)'
    )
    printed = subprocess.check_output([sys.executable, '-c', code], cwd=REPOSITORY, text=True)
    assert printed.split('\n')[0] == '[] True'


@pytest.mark.parametrize('call', ['reset', 'step', 'render'])
def test_a_worker_that_was_killed_is_replaced(call):
    both = {'reset': {0: 4, 1: 5}, 'step': {0: NO_ACTION, 1: NO_ACTION}, 'render': {0: 0, 1: 0}}
    with EnvWorkers(fake('Counter'), 2) as workers:
        workers.reset({0: 0, 1: 1})
        victim = multiprocessing.active_children()[0]
        victim.kill()
        victim.join()
        (lost,) = both[call].keys() - getattr(workers, call)(both[call]).keys()
        assert workers.lost[lost].startswith('died (exit code -9')
        assert set(workers.reset({0: 0, 1: 1})) == {0, 1}
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_at_its_start_is_reported():
    with pytest.raises(FQLError, match=r'worker of .*DiesAtStart-v0 \(worker 0\) died .*code 5'):
        EnvWorkers(fake('DiesAtStart'), 1)
    assert not multiprocessing.active_children()


def test_an_environment_that_ends_the_program_is_reported():
    with (
        pytest.raises(FQLError, match='failed in its worker: SystemExit: 7'),
        EnvWorkers(fake('BrokenReset'), 1) as workers,
    ):
        workers.reset({0: 0})


def test_an_exception_in_a_step_comes_with_the_workers_traceback():
    with EnvWorkers(fake('Broken'), 1) as workers:
        workers.reset({0: 0})
        with pytest.raises(FQLError) as caught:
            workers.step({0: NO_ACTION})
    head, *trace = str(caught.value).splitlines()
    assert head == (
        'environment fake_environments:Broken-v0 failed in its worker: '
        'ValueError: the motor is on fire'
    )
    assert any('fake_environments.py' in line for line in trace)


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        (EnvSpec('visual-cube-nought-v0'), "unknown environment 'visual-cube-nought-v0'"),
        (EnvSpec('visual-cube-single-v9'), "unknown environment 'visual-cube-single-v9'"),
        (EnvSpec('no_such_module:x-v0'), 'no_such_module'),
        (EnvSpec(STATES, (('colour', 'red'),)), "unexpected keyword argument 'colour'"),
        (fake('WideActions'), 'RescaleAction'),
    ],
)
def test_an_environment_that_cannot_be_made_gives_one_line(spec, message):
    with pytest.raises(FQLError) as caught:
        EnvWorkers(spec, 2)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    'surroundings',
    [
        {'MUJOCO_GL': 'bogus'},
        {'MUJOCO_GL': 'glfw'},
        {'__EGL_VENDOR_LIBRARY_DIRS': '/nonexistent', 'MUJOCO_GL': 'egl'},
    ],
)
def test_no_opengl_gives_one_line_that_says_what_to_install(surroundings, monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FQLError) as caught:
        EnvWorkers(EnvSpec(VISUAL), 1)
    message = str(caught.value)
    assert message.startswith(f'cannot render {VISUAL}')
    assert 'apt-get install libegl1' in message
    assert 'MUJOCO_GL=osmesa' in message
    assert '\n' not in message


PARENT = """
import multiprocessing, sys, time
from fql.envs.workers import EnvWorkers
from fql.envs.make import EnvSpec
if __name__ == '__main__':
    with EnvWorkers(EnvSpec('fake_environments:Counter-v0'), 2) as workers:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        while True:
            workers.reset({0: 0, 1: 1})
            time.sleep(0.01)
"""


@pytest.fixture
def parent(tmp_path):
    """A process in a separate session with two workers, and the workers' process ids."""
    script = tmp_path / 'parent.py'
    script.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, 'PYTHONPATH': PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    yield process, pids
    process.kill()
    process.communicate()


def gone(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) for pid in pids)


def test_interrupting_the_parent_prints_no_traceback_of_the_workers(parent):
    process, pids = parent
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.count('Traceback') == 1
    assert 'KeyboardInterrupt' in errors
    wait_until_gone(pids)


def test_what_an_environment_started_ends_with_its_worker():
    workers = EnvWorkers(fake('StartsProcess'), 1)
    pid = int(workers.reset({0: 0})[0][0])
    assert not gone(pid)
    with pytest.raises(KeyError), workers:
        raise KeyError
    wait_until_gone([pid])


def test_workers_end_when_the_parent_is_killed(parent):
    process, pids = parent
    process.kill()
    _, errors = process.communicate(timeout=20)
    assert errors == ''
    wait_until_gone(pids)


REAPER = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
parent = subprocess.Popen([sys.executable, sys.argv[1]])
print(parent.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of Linux')
def test_workers_that_are_stopped_end_when_the_parent_is_killed(tmp_path):
    """With a reaper in their session, as under some job schedulers, Linux no longer wakes them."""
    script = tmp_path / 'parent.py'
    script.write_text(PARENT)
    reaper = subprocess.Popen(
        [sys.executable, '-c', REAPER, str(script)],
        env={**os.environ, 'PYTHONPATH': PYTHONPATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    parent, *pids = (int(reaper.stdout.readline()), *map(int, reaper.stdout.readline().split()))
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        os.kill(parent, signal.SIGKILL)
        wait_until_gone(pids)
    finally:
        for pid in (pid for pid in pids if not gone(pid)):
            os.kill(pid, signal.SIGKILL)
        reaper.communicate()


def test_workers_never_closed_do_not_keep_the_parent_from_ending(tmp_path):
    script = tmp_path / 'forgetful.py'
    script.write_text(
        'from fql.envs.workers import EnvWorkers\n'
        'from fql.envs.make import EnvSpec\n'
        'if __name__ == "__main__":\n'
        '    workers = EnvWorkers(EnvSpec("fake_environments:Counter-v0"), 2)\n'
    )
    ended = subprocess.run(
        [sys.executable, script],
        env={**os.environ, 'PYTHONPATH': PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stderr == ''


def test_what_is_raised_while_waiting_ends_the_wait_for_a_worker_that_hangs(tmp_path):
    def stop_when_it_hangs():
        if (tmp_path / '0').exists():
            raise KeyError

    spec = fake('Fails', kwargs=(('folder', str(tmp_path)), ('times', 1)))
    with pytest.raises(KeyError), EnvWorkers(spec, 1, 1e6, stop_when_it_hangs) as workers:
        rollout(workers, 0, seed=0)
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers_and_may_be_done_twice():
    workers = EnvWorkers(fake('Counter'), 2)
    workers.close()
    workers.close()
    assert not multiprocessing.active_children()
