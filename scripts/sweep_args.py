"""The arguments of `fql sweep`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fql.errors import FQLError
from scripts.shared_args import DataDir


@dataclass(frozen=True)
class Sweep:
    """Train the runs of a file: tasks x agents x seeds x settings.

    fql sweep maze --jobs 2
    fql sweep mine.toml --dir runs/mine --dry-run
    fql sweep paper-pixels --cluster slurm --cluster-options slurm_partition=gpu gpus_per_node=1

    Runs what is missing and continues what was interrupted: repeat the command after a stop, a
    kill, or a fault that you have fixed. With nothing left to do, it only prints the table.
    """

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='FILE|NAME')]
    """A .toml file, or one of maze (minutes), small, small-states (hours), paper-pixels,
    paper-states, paper-d4rl and paper-online."""
    dir: Path | None = None
    """The sweep's folder, with a copy of the file; default: runs/NAME."""
    jobs: int = 1
    """Runs at the same time; on Slurm, of those that one command submits."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs that the runs take turns on; default: each run uses all."""
    dry_run: bool = False
    """Print the commands, and start none."""
    cluster: Literal['slurm', 'local'] | None = None
    """Submit the runs through submitit (needs the extra `slurm`) and return; the same command shows
    the table later. local: jobs on this machine, all at once, for a trial; refused if they are
    more than --jobs."""
    cluster_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar='NAME=VALUE')] = ()
    """Options for submitit, such as timeout_min=600 slurm_partition=gpu gpus_per_node=1."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if self.cluster_options and self.cluster is None:
            raise FQLError('--cluster-options needs --cluster')
        if self.gpus and self.cluster is not None:
            raise FQLError(
                '--gpus is for runs on this machine; '
                'on a cluster, use --cluster-options gpus_per_node=1'
            )
        for option in self.cluster_options:
            if '=' not in option:
                raise FQLError(f'--cluster-options must be NAME=VALUE, not {option}')
