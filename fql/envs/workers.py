"""Environments in worker processes, one in each, which never import TensorFlow or JAX."""

import random
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Self

import numpy as np

from data_pipeline.environment import render_in_one_thread
from data_pipeline.errors import first_line
from data_pipeline.observations import map_named
from data_pipeline.workers import WorkerGroup
from fql.envs.make import EnvSpec, boxes_of, make_env
from fql.envs.pictures import Painter, hides_goal
from fql.errors import FQLError

STEP_SECONDS = 300.0
_START_SECONDS = 300.0
_CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.2


class Step(NamedTuple):
    """What one step of an environment gives; `success` is NaN where it reports none."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    success: float


class _Spaces(NamedTuple):
    observation_shape: Any
    observation_dtype: Any
    action_dim: int
    hides_goal: bool
    max_episode_steps: int | None


class EnvWorkers:
    """Spawned worker processes, each with one environment; a context manager.

    Methods take and give one item per worker, by the worker's index, and all the workers named
    work at the same time. A worker that hangs or has died is replaced. The new one has no episode
    until it is reset: the method's result leaves it out. After an exception the workers cannot be
    used any more.

    Attributes:
        spec: what each worker made.
        num_workers: how many there are.
        step_seconds: time without an answer after which a worker hangs.
        observation_shape: of one (stacked) observation: (h, w, c) or (d,); of several, by name.
        observation_dtype: uint8 for images, float32 for vectors; of several, by name.
        action_dim: the width of an action.
        hides_goal: images do not show the goal, which pictures do.
        max_episode_steps: gymnasium's time limit; None where there is none.
        lost: why a worker was replaced the last time, by its index: `died (...)`, for example.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_workers: int,
        step_seconds: float = STEP_SECONDS,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the workers and wait until all have made their environment.

        Args:
            spec: what each worker makes.
            num_workers: how many.
            step_seconds: how long a reset, a step or a picture may take.
            while_waiting: called in every call of a method, and several times a second while it
                waits; what it raises ends the waiting.

        Raises:
            FQLError: the environment cannot be made (see `make_env`), or not within five minutes,
                or a worker died.
        """
        if num_workers < 1:
            raise FQLError(f'num_workers must be at least 1, not {num_workers}')
        self.spec = spec
        self.num_workers = num_workers
        self.step_seconds = step_seconds
        self.lost: dict[int, str] = {}
        self._while_waiting = while_waiting
        self._group = WorkerGroup()
        try:
            for _ in range(num_workers):
                self._group.start(_run_worker, spec, num_workers > 1)
            spaces = self._wait_for_start(range(num_workers))
        except BaseException:
            self._group.kill()
            raise
        (
            self.observation_shape,
            self.observation_dtype,
            self.action_dim,
            self.hides_goal,
            self.max_episode_steps,
        ) = spaces[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self._group.kill()

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Any]:
        """Start an episode in each worker named and give the first observations.

        The same seed (in [0, 2**32)) starts the same episode, whatever the worker did before.
        """
        return self._call('reset', seeds)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Step]:
        """Step each worker named with its action (action_dim,)."""
        return self._call('step', actions)

    def begin_steps(self, actions: Mapping[int, np.ndarray]) -> None:
        """As `step`, but does not wait: `finish_steps` does."""
        self._send('step', actions)

    def finish_steps(self, indices: Iterable[int]) -> dict[int, Step]:
        """The results of the steps begun."""
        return self._collect(indices)

    def render(self, indices: Iterable[int]) -> dict[int, np.ndarray | str]:
        """Pictures (h, w, 3) uint8 of the current states, or a line that says why there is none."""
        return self._call('render', dict.fromkeys(indices))

    def close(self) -> None:
        """Let the workers close their environments, and end them; may be called twice."""
        self._group.close(_CLOSE_SECONDS)

    def _call(self, command: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        self._send(command, arguments)
        return self._collect(arguments)

    def _send(self, command: str, arguments: Mapping[int, Any]) -> None:
        for index, argument in arguments.items():
            with suppress(OSError):  # It has died, which `_collect` finds.
                self._group.connections[index].send((command, argument))

    def _collect(self, indices: Iterable[int]) -> dict[int, Any]:
        """The workers' answers; those that do not answer are replaced and left out."""
        indices = list(indices)
        answers = self._answers(indices, self.step_seconds, 'for a step (--env-step-seconds)')
        lost = [index for index in indices if index not in answers]
        for index in lost:
            self._group.replace(index, _run_worker, self.spec, self.num_workers > 1)
        self._wait_for_start(lost)
        return {index: answers[index] for index in indices if index in answers}

    def _wait_for_start(self, indices: Iterable[int]) -> dict[int, _Spaces]:
        indices = list(indices)
        spaces = self._answers(indices, _START_SECONDS, 'to make it')
        for index in indices:
            if index not in spaces:
                raise FQLError(
                    f'the worker of environment {self.spec.env_id} (worker {index}) '
                    f'{self.lost[index]}'
                )
        return spaces

    def _answers(self, indices: Iterable[int], seconds: float, purpose: str) -> dict[int, Any]:
        """The workers' answers, without those that die or take longer, for which see `lost`."""
        awaited = {self._group.connections[index]: index for index in indices}
        answers = {}
        left = seconds
        while awaited and left > 0:
            pause = min(left, _POLL_SECONDS)
            ready = wait(list(awaited), pause)
            for connection in ready:
                assert isinstance(connection, Connection)
                index = awaited.pop(connection)
                try:
                    fault, answers[index] = connection.recv()
                except (EOFError, OSError):
                    code = self._group.exit_code(index, _CLOSE_SECONDS)
                    hint = '; -9 often means that the machine ran out of memory'
                    self.lost[index] = f'died (exit code {code}{hint})'
                    continue
                if fault is not None:
                    raise FQLError(fault)
            if not ready:
                # Not by the clock, which continues while workers and this process are stopped.
                left -= pause
            self._while_waiting()
        for index in awaited.values():
            self.lost[index] = f'took longer than {seconds:g} s {purpose}'
        return answers


def _run_worker(connection: Connection, spec: EnvSpec, is_one_of_several: bool) -> None:
    """Run a worker: make the environment, serve commands, end when the pipe does.

    Each reply is (fault, result), the first one with the environment's spaces.
    """
    if is_one_of_several:
        render_in_one_thread()
    try:
        with closing(make_env(spec)) as env:
            _serve(connection, env)
    except FQLError as error:
        connection.send((str(error), None))
    except BaseException as error:  # Also where the environment's code ends the process.
        connection.send(
            (
                f'environment {spec.env_id} failed in its worker: {type(error).__name__}: '
                f'{first_line(error)}\n{traceback.format_exc()}',
                None,
            )
        )


def _serve(connection: Connection, env: Any) -> None:
    observations, actions = boxes_of(env.observation_space), env.action_space
    shapes = map_named(lambda box: box.shape, observations)
    dtypes = map_named(lambda box: box.dtype, observations)
    limit = None if env.spec is None else env.spec.max_episode_steps
    connection.send((None, _Spaces(shapes, dtypes, actions.shape[0], hides_goal(env), limit)))
    painter = Painter(env)
    commands: dict[str, Callable[[Any], Any]] = {
        'reset': partial(_reset, env),
        'step': partial(_step, env),
        'render': lambda _: _picture(painter, env),
    }
    while True:
        try:
            command, argument = connection.recv()
        except EOFError:  # The parent closed the pipe.
            return
        connection.send((None, commands[command](argument)))


def _reset(env: Any, seed: int) -> Any:
    # OGBench draws from NumPy's global state and from the action space as well as from the
    # environment's own generator, and in its reset already; other environments from Python's.
    np.random.seed(seed)
    random.seed(seed)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    return observation


def _step(env: Any, action: np.ndarray) -> Step:
    observation, reward, terminated, truncated, info = env.step(action)
    return Step(observation, reward, bool(terminated), bool(truncated), info['success'])


def _picture(painter: Painter, env: Any) -> np.ndarray | str:
    name = env.spec.id if env.spec is not None else env
    try:
        frame = painter.draw()
    except NotImplementedError:  # Gymnasium's, where an environment has none.
        return f'{name} has no render()'
    except Exception as error:  # Vectors are also for machines without OpenGL.
        return f'{name} cannot be drawn: {type(error).__name__}: {first_line(error)}'
    if not isinstance(frame, np.ndarray):
        return f'{name} gives no picture: add render_mode="rgb_array" to its kwargs'
    return frame
