"""The arguments of `fql evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fql.errors import FQLError
from fql.output import check_new
from fql.runs.run_folder import RunFolder, steps_to_read
from fql.runs.run_spec import read_spec


@dataclass(frozen=True)
class Evaluate:
    """Roll out a trained policy and print its success, or its score.

    fql evaluate runs/cube --episodes 50 --video cube.gif
    fql evaluate runs/cube --candidates 1 4 16
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    episodes: int = 50
    """Number of episodes; episode i is reset with seed + i."""
    seed: int | None = None
    """Default: the run's eval-seed."""
    policy: str = ''
    """One of the agent's policies (fql: one_step, bc_flow), or random for uniform actions; default:
    the agent's first one."""
    candidates: tuple[int, ...] = ()
    """Let the critics choose the best of this many actions of the first policy (agents fql, ifql
    and qc); each number in turn."""
    workers: int = 0
    """Processes that run environments (0: one for each processor, at most 16)."""
    env: str = ''
    """For task own: the Gymnasium environment, MODULE:ID; default: the run's."""
    max_episode_steps: int | None = None
    """Longest episode (0: the environment's own limit); default: the run's."""
    env_step_seconds: float | None = None
    """Longest time that a step of an environment may take; default: the run's."""
    success_timing: Literal['pre', 'post'] | None = None
    """When success is judged; default: the run's."""
    video: Path | None = None
    """Write the first episodes as a .gif or an .mp4; an existing file is not overwritten."""
    watch: bool = False
    """Evaluate every new checkpoint of a run that is being trained (with --eval-interval 0) and
    write the results into its folder; ends with the run's last step."""

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        others = (
            *(self.step, self.seed, self.max_episode_steps, self.env_step_seconds),
            *(self.success_timing, self.video, self.candidates or None),
        )
        if self.watch and (self.policy or any(x is not None for x in others)):
            raise FQLError(
                '--watch evaluates every checkpoint as training does; '
                'only --episodes, --workers and --env can be given with it'
            )
        if self.policy == 'random' and (self.step is not None or self.candidates):
            raise FQLError('--policy random reads no checkpoint: leave out --step and --candidates')
        if self.video is not None and len(self.candidates) > 1:
            raise FQLError('--video shows one policy: give a single number to --candidates')
        if self.video is not None and self.video.suffix not in ('.gif', '.mp4'):
            raise FQLError(f'{self.video}: only .gif and .mp4 videos are written')
        check_new(self.video)
        folder = RunFolder(self.run)
        read_spec(folder)
        if not self.watch and self.policy != 'random':
            steps_to_read(folder.checkpoints, self.step)
