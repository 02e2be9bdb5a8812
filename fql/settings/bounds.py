"""The bounds of every number in a configuration, and the checks of values."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fql.errors import FQLError
from fql.settings.flags import flag_of

BOUNDS: dict[str, tuple[float, float]] = {
    'seed': (0, 2**31 - 1),
    'steps': (0, 2**31 - 1),
    'online_steps': (0, 2**31 - 1),
    'updates_per_env_step': (1, 1000),
    'online_warmup': (0, 2**31 - 1),
    'online_workers': (1, 256),
    'ucb_candidates': (2, 4096),
    'ucb_beta': (0, 1e6),
    'encoder_lr_multiplier': (0, 1e3),
    'batch_size': (1, 2**20),
    'frame_stack': (1, 64),
    'shift_probability': (0, 1),
    'updates_per_call': (0, 10_000),
    'log_interval': (0, 2**31 - 1),
    'eval_interval': (0, 2**31 - 1),
    'eval_episodes': (0, 10**6),
    'eval_workers': (0, 4096),
    'eval_videos': (0, 100),
    'eval_seed': (0, 2**31 - 1),
    'max_episode_steps': (0, 2**31 - 1),
    'env_step_seconds': (0.1, 10**6),
    'save_interval': (0, 2**31 - 1),
    'keep_latest': (1, 2**31 - 1),
    'keep_interval': (0, 2**31 - 1),
    'brightness': (0, 1),
    'contrast': (0, 1),
    'saturation': (0, 1),
    'hue': (0, 0.5),
    'grayscale_probability': (0, 1),
    'blur_probability': (0, 1),
    'cutout_probability': (0, 1),
    'lr': (1e-12, 10),
    'discount': (0, 1),
    'tau': (0, 1),
    'hidden_dims': (1, 2**16),
    'alpha': (0, 1e9),
    'alpha_actor': (0, 1e9),
    'alpha_critic': (0, 1e9),
    'beta': (0, 1e9),
    'expectile': (0, 1),
    'flow_steps': (1, 1000),
    'num_samples': (1, 4096),
    'num_critics': (1, 100),
    'critic_pessimism': (0, 100),
    'candidates': (1, 4096),
    'target_candidates': (1, 4096),
    'horizon': (1, 1000),
    'actor_freq': (1, 10_000),
    'actor_noise': (0, 100),
    'actor_noise_clip': (0, 100),
    'target_entropy_multiplier': (-100, 100),
    'lr_multiplier': (1e-9, 1e3),
    'unfreeze_step': (0, 2**31 - 1),
    'mask_ratio': (0, 0.99),
    'num_processes': (1, 2**16),
    'process_id': (0, 2**16),
}
"""Smallest and largest value of every number in a configuration, by the field's name; of each one
where a field has several.
"""


def check_bounds(config: Any, bounds: Mapping[str, tuple[float, float]] = BOUNDS) -> None:
    """Raise FQLError if a number of a dataclass, or of one nested in it, is out of its bounds.

    Args:
        bounds: smallest and largest value, by the field's name.
    """
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, bounds)
        elif entry.name in bounds and value is not None:
            low, high = bounds[entry.name]
            values = value if isinstance(value, tuple) else (value,)
            if not all(low <= number <= high for number in values):  # NaN fails both comparisons.
                shown = ' '.join(map(_text, values))
                flag = flag_of(config, entry.name).replace('_', '-')
                raise FQLError(f'{flag} must lie in [{_text(low)}, {_text(high)}], not {shown}')


def _text(number: float) -> str:
    """The number in short form if that is exact, else in full."""
    short = f'{number:g}'
    return short if float(short) == number or math.isnan(number) else repr(number)


def raise_unless(checks: dict[str, bool]) -> None:
    """Raise FQLError with the first message whose check does not hold."""
    for message, holds in checks.items():
        if not holds:
            raise FQLError(message)
