"""Checks of what an environment returns: what gymnasium's interface and its own spaces say.

Imports gymnasium, and so is imported where an environment is made.
"""

import inspect
from typing import Any

import gymnasium
import numpy as np

from data_pipeline.observations import named, unnamed
from fql.errors import FQLError


class Checked(gymnasium.Wrapper):
    """An environment whose results are checked before any other wrapper takes them apart."""

    def __init__(self, env: gymnasium.Env, env_id: str) -> None:
        """Wrap the environment; errors name `env_id`."""
        super().__init__(env)
        self._env_id = env_id

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's.

        Raises:
            FQLError: it returns something else than (observation, info).
        """
        result = self.env.reset(seed=seed, options=options)
        self._check_values('reset', result, ('observation', 'info'))
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's.

        Raises:
            FQLError: it does not return five values, the reward is not a finite number, or there is
                a success that is neither None nor a number in [0, 1].
        """
        result: Any = self.env.step(action)
        names = ('observation', 'reward', 'terminated', 'truncated', 'info')
        self._check_values('step', result, names)
        observation, reward, terminated, truncated, info = result
        reward = self._number('the reward', reward)
        if not np.isfinite(np.float32(reward)):  # As it is stored.
            raise FQLError(f'{self._env_id}: the reward must be finite in float32, not {reward}')
        success = info.get('success')
        success = np.nan if success is None else self._number("info['success']", success)
        if success < 0 or success > 1:
            raise FQLError(f"{self._env_id}: info['success'] must lie in [0, 1], not {success}")
        return observation, reward, terminated, truncated, {**info, 'success': success}

    def _number(self, which: str, value: Any) -> float:
        """A single number, which may be in an array."""
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in 'biuf':
            text = repr(value).replace('\n', ' ')
            raise FQLError(f'{self._env_id}: {which} must be a number, not {text:.80}')
        return float(array.reshape(()))

    def _check_values(self, function: str, result: Any, names: tuple[str, ...]) -> None:
        is_tuple = isinstance(result, tuple) and len(result) == len(names)
        if is_tuple and isinstance(result[-1], dict):
            return
        found = f'{len(result)} values' if isinstance(result, tuple) else type(result).__name__
        if is_tuple:
            found = f'an info of type {type(result[-1]).__name__}'
        raise FQLError(
            f'{self._env_id}: {function} must return ({", ".join(names)}), as in gymnasium since '
            f'0.26, with a dict as info; it returned {found}'
        )


def check_results(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """The environment with a `Checked` below its other wrappers.

    Raises:
        FQLError: its `reset` takes no seed or options.
    """
    try:
        inspect.signature(env.unwrapped.reset).bind(seed=0, options=None)
    except TypeError:
        raise FQLError(f'{env_id}: reset must take seed and options, as in gymnasium') from None
    if not isinstance(env, gymnasium.Wrapper):
        return Checked(env, env_id)
    inner = env
    while isinstance(inner.env, gymnasium.Wrapper):
        inner = inner.env
    inner.env = Checked(inner.env, env_id)
    return env


def check_observation(env_id: str, space: Any, observation: Any) -> Any:
    """A copy of the observation, if it has the form of its space, a box or several by name.

    A copy, as an environment may write its next observation into the same array.

    Raises:
        FQLError: an array is missing, has another shape, or holds what is not a finite number.
    """
    given, copies = named(observation), {}
    for name, box in named(space).items():
        which = f'{env_id}: observation {name}'.rstrip()
        if name not in given:
            raise FQLError(f'{which} is missing in what the environment returned')
        array = np.asarray(given[name])
        is_number = array.dtype.kind in 'biuf' and np.can_cast(array.dtype, box.dtype, 'same_kind')
        if array.shape != box.shape or not is_number:
            raise FQLError(
                f'{which} is {array.dtype} {array.shape}, though its space is {box.dtype} '
                f'{box.shape}'
            )
        if box.dtype.kind == 'f':
            with np.errstate(over='ignore'):
                array = array.astype(box.dtype)
            if not np.isfinite(array).all():
                raise FQLError(f'{which} holds values that are not finite')
        copies[name] = np.array(given[name])
    return unnamed(copies)
