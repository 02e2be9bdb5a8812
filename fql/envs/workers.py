"""Environments in processes of their own, one each, which never import TensorFlow or JAX."""

import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import numpy as np

from fql.envs.make import EnvSpec, make_env
from fql.errors import FQLError, first_line

_CLOSE_SECONDS = 5.0


class Step(NamedTuple):
    """What one step of an environment gives; `success` is NaN where it reports none."""

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    success: float


class _Spaces(NamedTuple):
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    action_dim: int


class EnvWorkers:
    """Spawned worker processes, each with one environment; a context manager.

    Methods take and give one item per worker, by the worker's index, and all the workers named
    work at the same time. After an FQLError the workers are of no further use.

    Attributes:
        spec: what each worker made.
        num_workers: how many there are.
        observation_shape: of one (stacked) observation: (h, w, c) or (d,).
        observation_dtype: uint8 for images, float32 for vectors.
        action_dim: the width of an action.
    """

    def __init__(self, spec: EnvSpec, num_workers: int) -> None:
        """Starts the workers and waits until all have made their environment.

        Raises:
            FQLError: the environment cannot be made (see `make_env`), or a worker died.
        """
        if num_workers < 1:
            raise FQLError(f'num_workers must be at least 1, not {num_workers}')
        self.spec = spec
        self.num_workers = num_workers
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        try:
            for _ in range(num_workers):
                self._start_worker()
            spaces: list[_Spaces] = [self._receive(index) for index in range(num_workers)]
        except BaseException:
            self._kill()
            raise
        self.observation_shape, self.observation_dtype, self.action_dim = spaces[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self._kill()

    def reset(self, seeds: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Starts an episode in each worker named and gives the first observations.

        The same seed (in [0, 2**32)) starts the same episode, whatever the worker did before.
        """
        return self._call('reset', seeds)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Step]:
        """Steps each worker named with its action (action_dim,)."""
        return self._call('step', actions)

    def render(self, indices: Iterable[int]) -> dict[int, np.ndarray]:
        """Pictures (h, w, 3) uint8 of the current states."""
        return self._call('render', dict.fromkeys(indices))

    def close(self) -> None:
        """Lets the workers close their environments and ends them; may be called twice."""
        for connection in self._connections:
            connection.close()  # The worker reads the end of the pipe, and leaves its loop.
        for process in self._processes:
            process.join(_CLOSE_SECONDS)
        self._kill()

    def _start_worker(self) -> None:
        context = multiprocessing.get_context('spawn')
        ours, theirs = context.Pipe()
        # Software OpenGL starts as many threads as there are cores in every process; two workers
        # on two cores render twice as fast without.
        single_threaded = self.num_workers > 1
        process = context.Process(
            target=_run_worker, args=(theirs, self.spec, single_threaded), daemon=True
        )
        with _sigint_blocked():
            process.start()
        theirs.close()  # Else the pipe would stay open when the worker dies.
        self._processes.append(process)
        self._connections.append(ours)

    def _call(self, command: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        for index, argument in arguments.items():
            try:
                self._connections[index].send((command, argument))
            except OSError:
                raise self._death(index) from None
        return {index: self._receive(index) for index in arguments}

    def _receive(self, index: int) -> Any:
        try:
            fault, result = self._connections[index].recv()
        except (EOFError, OSError):
            raise self._death(index) from None
        if fault is not None:
            raise FQLError(fault)
        return result

    def _death(self, index: int) -> FQLError:
        process = self._processes[index]
        process.join(_CLOSE_SECONDS)
        return FQLError(
            f'the worker of environment {self.spec.env_id} died (worker {index}, exit code '
            f'{process.exitcode}); -9 often means that the machine ran out of memory'
        )

    def _kill(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            _kill_group(process)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started inside never see SIGINT: Ctrl-C is for the parent, which ends them."""
    # Started with the first process otherwise, which unblocks SIGINT before that process starts.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kill_group(process: Any) -> None:
    """Ends a worker and what it started; importing glfw, say, starts Python to find a version."""
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # It has not made its group yet.
            process.kill()
    process.join()


def _run_worker(connection: Connection, spec: EnvSpec, single_threaded: bool) -> None:
    """A worker's life: make the environment, serve commands, end when the pipe does.

    Each reply is (fault, result), the first one with the environment's spaces.
    """
    os.setpgrp()  # For `_kill_group`.
    if single_threaded:
        os.environ.setdefault('LP_NUM_THREADS', '0')
    # OGBench's manipulation environments make their action space anew at each use, with float64.
    warnings.filterwarnings('ignore', message='.*precision lowered by casting')
    with suppress(BrokenPipeError, ConnectionResetError):  # The parent is gone.
        try:
            with closing(make_env(spec)) as env:
                _serve(connection, env)
        except FQLError as error:
            connection.send((str(error), None))
        except Exception as error:
            connection.send(
                (
                    f'environment {spec.env_id} failed in its worker: {type(error).__name__}: '
                    f'{first_line(error)}\n{traceback.format_exc()}',
                    None,
                )
            )


def _serve(connection: Connection, env: Any) -> None:
    observations, actions = env.observation_space, env.action_space
    connection.send((None, _Spaces(observations.shape, observations.dtype, actions.shape[0])))
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:  # The parent closed the pipe.
            return
        connection.send((None, _COMMANDS[command](env, argument)))


def _reset(env: Any, seed: int) -> np.ndarray:
    # OGBench draws from NumPy's global state and from the action space as well as from the
    # environment's own generator, and in its reset already.
    np.random.seed(seed)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    return observation


def _step(env: Any, action: np.ndarray) -> Step:
    observation, reward, terminated, truncated, info = env.step(action)
    success = float(info.get('success', np.nan))
    return Step(observation, float(reward), bool(terminated), bool(truncated), success)


def _render(env: Any, _: None) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise FQLError(f'{env} gives no picture: add render_mode="rgb_array" to its kwargs')
    return frame


_COMMANDS: dict[str, Callable[[Any, Any], Any]] = {
    'reset': _reset,
    'step': _step,
    'render': _render,
}
