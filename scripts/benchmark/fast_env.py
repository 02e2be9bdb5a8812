"""An environment of images that takes no time: only updates and the code around them remain.

Importing this module registers it as 'scripts.benchmark.fast_env:FastImages-v0'.
"""

from typing import Any

import gymnasium
import numpy as np

SIZE, ACTION_DIM, EPISODE_STEPS = 64, 5, 200


class FastImages(gymnasium.Env):
    """An environment that shows 64 random images repeatedly."""

    observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def __init__(self) -> None:
        """Draw the images."""
        shape = (64, SIZE, SIZE, 3)
        self._images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See gymnasium."""
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._images[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See gymnasium."""
        self._step += 1
        image = self._images[self._step % len(self._images)]
        return image, -1.0, False, self._step == EPISODE_STEPS, {'success': 0.0}


gymnasium.register('FastImages-v0', f'{__name__}:FastImages')
