"""Construction of environments: what to make, and making it as the policy sees it.

Only for processes that never import TensorFlow: it crashes beside Mesa's software OpenGL. The
training process makes its environments through `fql.envs.workers`.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.action_range import ACTION_TOLERANCE, ActionRange
from data_pipeline.environment import choose_opengl, construct, is_opengl_fault
from data_pipeline.errors import first_line
from data_pipeline.observations import map_named, named
from fql.errors import FQLError

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class EnvSpec:
    """What `make_env` makes.

    Attributes:
        env_id: an OGBench environment's id, or 'module:id' for one that importing `module`
            registers with gymnasium.
        kwargs: (name, value) pairs for the environment's constructor, such as
            ('success_timing', 'post').
        observations: which of the arrays of a `Dict` the policy sees; none where there is only one.
        frame_stack: how many observations, oldest to newest, make one observation of the policy.
        max_episode_steps: replaces the registered time limit.
        action_range: what the policy's actions, [-1, 1], stand for; the environment's own bounds
            where they are narrower.
    """

    env_id: str
    kwargs: tuple[tuple[str, Any], ...] = ()
    observations: tuple[str, ...] = ()
    frame_stack: int = 1
    max_episode_steps: int | None = None
    action_range: ActionRange | None = None


def make_env(spec: EnvSpec) -> 'gymnasium.Env':
    """Make the environment, its observations stacked along their last axis.

    Observations are (h, w, c * frame_stack) uint8 for images, channels oldest to newest, and
    (d * frame_stack,) float32 for vectors; of a `Dict` such arrays by name. Before the first step
    the first one is repeated.

    Raises:
        FQLError: the id is unknown, rendering is impossible, the constructor fails, or the spaces
            are not images or vectors and actions in [-1, 1], or of the size of `action_range`, or
            lack one of `observations`.
    """
    choose_opengl()
    try:
        limit = {}
        if spec.max_episode_steps is not None:
            limit['max_episode_steps'] = spec.max_episode_steps
        from fql.envs.checked import check_results

        env = check_results(construct(spec.env_id, **limit, **dict(spec.kwargs)), spec.env_id)
        # OGBench's manipulation environments render a frame whenever their observation space is
        # read, which the frame stack does in every step; so the space is read once, here.
        env.observation_space = env.observation_space
    except FQLError:
        raise
    except Exception as error:
        raise FQLError(_construction_fault(spec, error)) from error
    if spec.action_range is not None:
        env = _scale_actions(spec.env_id, env, spec.action_range)
    if spec.observations:
        env = _choose_observations(spec, env)
    _check_spaces(spec, env)
    return _stack_frames(spec.env_id, env, spec.frame_stack)


def _choose_observations(spec: EnvSpec, env: 'gymnasium.Env') -> 'gymnasium.Env':
    from gymnasium.spaces import Dict
    from gymnasium.wrappers import FilterObservation

    space, wanted = env.observation_space, ', '.join(spec.observations)
    if not isinstance(space, Dict):
        raise FQLError(f'{spec.env_id}: observations must be a Dict with {wanted}, not {space}')
    if lacking := [name for name in spec.observations if name not in space.spaces]:
        raise FQLError(
            f'{spec.env_id}: observations have no {", ".join(lacking)}, which the data have; they '
            f'have {", ".join(space.spaces)}'
        )
    return FilterObservation(env, list(spec.observations))


def _stack_frames(env_id: str, env: 'gymnasium.Env', frame_stack: int) -> 'gymnasium.Env':
    from gymnasium.spaces import Box, Dict
    from gymnasium.wrappers import FrameStackObservation, TransformObservation

    from fql.envs.checked import check_observation

    boxes = boxes_of(env.observation_space)
    env = TransformObservation(
        env, lambda shown: check_observation(env_id, boxes, shown), env.observation_space
    )

    def stack_space(space: Box) -> Box:
        dtype: Any = np.uint8 if space.dtype == np.uint8 else np.float32
        low, high = (
            np.concatenate([bound] * frame_stack, axis=-1).astype(dtype)
            for bound in (space.low, space.high)
        )
        return Box(low, high, dtype=dtype)

    stacked = map_named(stack_space, boxes)
    dtypes = map_named(lambda box: box.dtype, stacked)
    return TransformObservation(
        FrameStackObservation(env, frame_stack, padding_type='reset'),
        lambda shown: map_named(
            lambda frames, dtype: np.concatenate(list(frames), axis=-1).astype(dtype), shown, dtypes
        ),
        Dict(stacked) if isinstance(stacked, dict) else stacked,
    )


def boxes_of(space: Any) -> Any:
    """The spaces of a `Dict` by name, in the order of the names; any other space as it is."""
    from gymnasium.spaces import Dict

    return dict(sorted(space.spaces.items())) if isinstance(space, Dict) else space


def _scale_actions(env_id: str, env: 'gymnasium.Env', scale: ActionRange) -> 'gymnasium.Env':
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformAction

    space, shape = env.action_space, (len(scale.low),)
    if not isinstance(space, Box) or space.shape != shape:
        raise FQLError(f'{env_id}: actions are {space}, but in the data they have shape {shape}')
    low, high = min(scale.low), max(scale.high)
    is_unit = np.all(space.low == -1) and np.all(space.high == 1)
    if is_unit and max(-low, high) > 1 + ACTION_TOLERANCE:
        raise FQLError(
            f'{env_id}: takes actions in [-1, 1], but those of the data range from {low:g} to '
            f"{high:g}, to which a policy's are scaled back: take gymnasium's RescaleAction off "
            'the environment; or, if it cuts actions off, cut off those of the data before fql '
            'prepare'
        )
    return TransformAction(
        env,
        lambda action: np.clip(scale.from_unit(action), space.low, space.high).astype(space.dtype),
        Box(-1, 1, shape, np.float32),
    )


def _check_spaces(spec: EnvSpec, env: 'gymnasium.Env') -> None:
    from gymnasium.spaces import Box, Dict

    observations, actions = env.observation_space, env.action_space
    # gymnasium's Dict is a mapping, and so would be taken for several spaces.
    if isinstance(observations, Dict) and not spec.observations:
        raise FQLError(
            f'{spec.env_id}: observations must be uint8 images (h, w, c) or float vectors (d,), '
            f'not {observations}; the data need arrays of these names: fql prepare '
            '--observation-key NAME=KEY, for each'
        )
    for name, space in named(boxes_of(observations)).items():
        image = isinstance(space, Box) and space.dtype == np.uint8
        if not isinstance(space, Box) or len(space.shape) != (3 if image else 1):
            which = f'observation {name}' if name else 'observations'
            raise FQLError(
                f'{spec.env_id}: {which} must be uint8 images (h, w, c) or float vectors (d,), '
                f'not {space}'
            )
    if not (
        isinstance(actions, Box)
        and len(actions.shape) == 1
        and np.all(actions.low == -1)
        and np.all(actions.high == 1)
    ):
        raise FQLError(
            f'{spec.env_id}: actions must be vectors in [-1, 1], not {actions}; '
            'prepare the data with --normalize-actions if they are in these units; wrap the '
            "environment in gymnasium's RescaleAction if they are in [-1, 1]"
        )


def _construction_fault(spec: EnvSpec, error: Exception) -> str:
    """One line that says why the environment cannot be made, and what to do."""
    from gymnasium.error import UnregisteredEnv

    reason = first_line(error)
    module = spec.env_id.rpartition(':')[0]
    if isinstance(error, ModuleNotFoundError) and module.startswith(f'{error.name}'):
        return (
            f'environment {spec.env_id!r}: there is no module {error.name!r}; it has to be '
            f'installed, or to lie in the current folder, {os.getcwd()}'
        )
    if isinstance(error, UnregisteredEnv):
        ids = f'importing {module} registers no such id' if module else 'OGBench has no such id'
        return f'unknown environment {spec.env_id!r}: {reason} ({ids})'
    if is_opengl_fault(error):
        backend = os.environ.get('MUJOCO_GL', 'unset')
        return (
            f'cannot render {spec.env_id}: MuJoCo found no usable OpenGL (MUJOCO_GL={backend}: '
            f'{reason}); install libegl1 (apt-get install libegl1 libgl1) or set MUJOCO_GL=osmesa '
            '(apt-get install libosmesa6)'
        )
    return f'cannot make environment {spec.env_id!r}: {type(error).__name__}: {reason}'
