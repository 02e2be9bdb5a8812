"""A trained policy in a user's own program: observations in, actions out."""

import operator
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.observations import map_named, named, unnamed
from fql.learner import Params
from fql.policies.exported_policy import read_exported
from fql.policies.policy import make_act, with_candidates
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder, check_path, is_exported
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_spec


@contextmanager
def _settings_of_training() -> Iterator[None]:
    """Inside, JAX has the settings of `fql`, which are its defaults, in this thread.

    A user's program may have others, with which a policy would draw other actions, or fail.
    """
    with (
        jax.enable_x64(False),
        jax.default_prng_impl('threefry2x32'),
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion('allow'),
        jax.numpy_dtype_promotion('standard'),
        jax.transfer_guard('allow'),
    ):
        yield


class LoadedPolicy:
    """A policy for observations as they come; keeps the frame stack and the actions to execute.

    Attributes:
        observation_shape: of one observation, not stacked: (h, w, c) or (d,); of several arrays, by
            name.
        observation_dtype: 'uint8' for images, 'float32' for vectors; of several, by name.
        action_dim: size of an action.
    """

    observation_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    observation_dtype: str | Mapping[str, str]
    action_dim: int

    def __init__(self, spec: RunSpec, params: Params, policy: str = '') -> None:
        """Set the policy up; compile nothing yet.

        Args:
            params: of the run's agent.
            policy: one of the agent's policies; its first one if empty.

        Raises:
            FQLError: the agent has no such policy.
        """
        self._act = make_act(agent_of(spec), policy)
        self._params = params
        self.observation_shape = spec.frame_shape
        self.observation_dtype = spec.observation_dtype
        self.action_dim = spec.action_dim
        self._range = spec.action_range
        self._frames: deque[Any] = deque(maxlen=spec.config.frame_stack)
        self._actions: list[deque[np.ndarray]] = []
        self.reset()

    @_settings_of_training()
    def reset(self, seed: int = 0) -> None:
        """Begin an episode, or one in each row of a batch; see also `begin_episodes`.

        Args:
            seed: in [0, 2**32); draws depend only on it, the row, and the steps since the reset.

        Raises:
            TypeError, ValueError: the seed is no whole number, or out of these bounds.
        """
        seed = operator.index(seed)
        if not 0 <= seed < 2**32:  # JAX would take it modulo 2**32.
            raise ValueError(f'seed must lie in [0, 2**32), not {seed}')
        self._key = jax.random.key(seed)
        self._frames.clear()
        self._actions = []
        self._begins = np.zeros(0, bool)
        self._step = 0

    def begin_episodes(self, rows: Any) -> None:
        """Begin an episode in some rows of a batch; the next observation is its first one there.

        For environments that are reset by themselves, as gymnasium's vector environments are.

        Args:
            rows: (b,) bool.

        Raises:
            ValueError: no episode has begun since `reset`, or the batch has another size.
        """
        rows = np.asarray(rows)
        if rows.dtype != bool or rows.shape != (len(self._actions),):
            raise ValueError(
                f'rows must be bool ({len(self._actions)},), as the episode began; got '
                f'{rows.dtype} {rows.shape}'
            )
        for row in np.flatnonzero(rows):
            self._actions[row].clear()
        self._begins = self._begins | rows

    @_settings_of_training()
    def __call__(self, observation: Any) -> np.ndarray:
        """The next action, (a,) float32 in [-1, 1] or in the data's own units; (b, a) for a batch.

        Args:
            observation: what the environment gave last, not stacked: (h, w, c) uint8 in [0, 255],
                or (d,) float; or a dictionary of such arrays, which may have more than the policy
                reads; or a batch of them, as many rows as at the episode's first step.

        Raises:
            ValueError: another shape or dtype, an array is missing, or holds what is not finite.
        """
        rows, is_batch = self._rows(observation)
        size = len(next(iter(named(rows).values())))
        if self._frames and (before := len(next(iter(named(self._frames[-1]).values())))) != size:
            raise ValueError(
                f'the episode began with {before} rows, not {size}; call reset() first'
            )
        if not self._frames:
            self._actions = [deque() for _ in range(size)]
            self._begins = np.zeros(size, bool)
            # Copies, as `begin_episodes` changes rows of each frame.
            while len(self._frames) < self._frames.maxlen - 1:  # type: ignore[operator]
                self._frames.append(map_named(np.copy, rows))
        self._frames.append(rows)
        if self._begins.any():
            for frame in self._frames:
                for name, array in named(frame).items():
                    array[self._begins] = named(rows)[name][self._begins]
            self._begins = np.zeros(size, bool)
        if not all(self._actions):
            stacked = map_named(
                lambda *frames: jnp.asarray(np.concatenate(frames, axis=-1)), *self._frames
            )
            episodes = jnp.arange(size, dtype=jnp.int32)
            steps = jnp.full(size, self._step, jnp.int32)
            actions = self._act(self._params, self._key, stacked, episodes, steps)
            for queue, chunk in zip(self._actions, np.asarray(actions), strict=True):
                if not queue:
                    queue.extend(chunk)
        self._step += 1
        action = np.stack([queue.popleft() for queue in self._actions])
        if self._range is not None:
            action = self._range.from_unit(action).astype(np.float32)
        return action if is_batch else action[0]

    def _rows(self, observation: Any) -> tuple[Any, bool]:
        """The observation as a batch of the type that the networks take; whether it was a batch."""
        shapes, dtypes = named(self.observation_shape), named(self.observation_dtype)
        given = named(observation)
        if missing := [name for name in shapes if name not in given]:
            wanted = ', '.join(shapes) if missing != [''] else 'one array'
            got = ', '.join(given) if isinstance(observation, Mapping) else 'one array'
            raise ValueError(f'an observation of this policy must be {wanted}; got {got}')
        rows = {}
        are_batches = set()
        for name, shape in shapes.items():
            array, dtype = np.asarray(given[name]), np.dtype(dtypes[name])
            is_batch = array.ndim == len(shape) + 1
            block = array if is_batch else array[None]
            is_fit = block.dtype == dtype or (dtype == np.float32 and block.dtype.kind == 'f')
            if block.shape[1:] != shape or not is_fit or not len(block):
                raise ValueError(
                    f'{name or "an observation"} of this policy must be {dtype} {shape}, or a '
                    f'batch of them; got {array.dtype} {array.shape}'
                )
            with np.errstate(over='ignore'):
                rows[name] = block.astype(dtype, copy=True)
            if not np.isfinite(rows[name]).all():
                raise ValueError(f'{name or "an observation"} holds values that are not finite')
            are_batches.add((is_batch, len(block)))
        if len(are_batches) > 1:
            raise ValueError(
                'all arrays of an observation must be batches of the same size, or none; got '
                + ', '.join(f'{name} {np.shape(given[name])}' for name in shapes)
            )
        return unnamed(rows), is_batch


@_settings_of_training()
def load_policy(
    path: Path | str, policy: str = '', *, step: int | None = None, candidates: int | None = None
) -> LoadedPolicy:
    """The policy of a run, or of a folder that `fql export-policy` wrote.

    Reads parameters and settings only; needs neither the dataset nor the environment.

    Args:
        path: the folder.
        policy: one of the agent's policies (fql: one_step, bc_flow); its first one if empty.
        step: which checkpoint of a run; None for the newest that is sound. An exported folder has
            one.
        candidates: of how many actions of the first policy the critics' best is taken; None for
            the run's setting.

    Raises:
        FQLError: no such folder, checkpoint or policy; or one that does not choose.
        OSError: a file cannot be read.
        TypeError: `step` or `candidates` is no whole number.
    """
    step = step if step is None else operator.index(step)
    folder = RunFolder(Path(os.path.expanduser(path)))
    spec = read_spec(folder)
    if is_exported(folder.path):
        check_path(folder.path)
        params = read_exported(folder.path, spec, step)
    else:
        _, params = restore_params(folder, spec, step)
    if candidates is not None:
        spec = with_candidates(spec, operator.index(candidates), policy)
    return LoadedPolicy(spec, params, policy)
