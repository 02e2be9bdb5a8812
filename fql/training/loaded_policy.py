"""A trained policy in a user's own program: observations in, actions out."""

from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fql.learner import Params
from fql.training.exported_policy import is_exported, read_exported
from fql.training.learning import agent_of
from fql.training.policy import make_act, restore_params, with_candidates
from fql.training.run_folder import RunFolder, RunSpec, read_spec


class LoadedPolicy:
    """Acts on observations as they come; keeps the frame stack and the actions still to execute.

    Attributes:
        observation_shape: of one observation, not stacked: (h, w, c) or (d,).
        observation_dtype: 'uint8' for images, 'float32' for vectors.
        action_dim: size of an action.
    """

    def __init__(self, spec: RunSpec, params: Params, policy: str = '') -> None:
        """Compiles nothing yet.

        Args:
            params: of the run's agent.
            policy: one of the agent's policies; its first one if empty.

        Raises:
            FQLError: the agent has no such policy.
        """
        self._act = make_act(agent_of(spec), policy)
        self._params = params
        stack = spec.config.frame_stack
        *outer, last = spec.observation_shape
        self.observation_shape = (*outer, last // stack)
        self.observation_dtype = spec.observation_dtype
        self.action_dim = spec.action_dim
        self._range = spec.action_range
        self._frames: deque[np.ndarray] = deque(maxlen=stack)
        self._actions: deque[np.ndarray] = deque()
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Begins an episode, or one in each row of a batch.

        Args:
            seed: what is drawn depends on it, the row, and the steps since the reset alone.
        """
        self._key = jax.random.key(seed)
        self._frames.clear()
        self._actions.clear()
        self._step = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The next action, (a,) float32 in [-1, 1] or in the data's own units; (b, a) for a batch.

        Args:
            observation: what the environment gave last, not stacked: (h, w, c) uint8 in [0, 255],
                or (d,) float; or a batch of them, as many rows as at the episode's first step.

        Raises:
            ValueError: another shape or dtype.
        """
        rows, is_batch = self._rows(np.asarray(observation))
        while len(self._frames) < self._frames.maxlen - 1:  # type: ignore[operator]
            self._frames.append(rows)
        self._frames.append(rows)
        if not self._actions:
            stacked = jnp.asarray(np.concatenate(self._frames, axis=-1))
            episodes = jnp.arange(len(rows), dtype=jnp.int32)
            steps = jnp.full(len(rows), self._step, jnp.int32)
            actions = self._act(self._params, self._key, stacked, episodes, steps)
            self._actions.extend(np.moveaxis(np.asarray(actions), 1, 0))
        self._step += 1
        action = self._actions.popleft()
        if self._range is not None:
            action = self._range.from_unit(action).astype(np.float32)
        return action if is_batch else action[0]

    def _rows(self, observation: np.ndarray) -> tuple[np.ndarray, bool]:
        """The observation as a batch of the type that the networks take; whether it was a batch."""
        shape, dtype = self.observation_shape, np.dtype(self.observation_dtype)
        is_batch = observation.ndim == len(shape) + 1
        rows = observation if is_batch else observation[None]
        is_fit = rows.dtype == dtype or (dtype == np.float32 and rows.dtype.kind == 'f')
        if rows.shape[1:] != shape or not is_fit or not len(rows):
            raise ValueError(
                f'an observation of this policy is {dtype} {shape}, or a batch of them; got '
                f'{observation.dtype} {observation.shape}'
            )
        if self._frames and self._frames[-1].shape != rows.shape:
            raise ValueError(
                f'an episode of {len(self._frames[-1])} rows goes on with {len(rows)}: call reset()'
            )
        return rows.astype(dtype, copy=True), is_batch


def load_policy(
    path: Path | str, policy: str = '', *, step: int | None = None, candidates: int | None = None
) -> LoadedPolicy:
    """The policy of a run, or of a folder that `fql export-policy` wrote.

    Reads parameters and settings only; needs neither the dataset nor the environment.

    Args:
        path: the folder.
        policy: one of the agent's policies (fql: one_step, bc_flow); its first one if empty.
        step: which checkpoint of a run; None for the newest that is sound.
        candidates: of how many actions the critics' best is taken; None for the run's setting.

    Raises:
        FQLError: no such folder, checkpoint or policy.
    """
    folder = RunFolder(Path(path).expanduser())
    spec = read_spec(folder)
    if is_exported(folder.path):
        params = read_exported(folder.path, spec)
    else:
        _, params = restore_params(folder, spec, step)
    if candidates is not None:
        spec = with_candidates(spec, candidates)
    return LoadedPolicy(spec, params, policy)
