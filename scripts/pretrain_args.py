"""The arguments of `fql pretrain`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fql.pretraining.pretrain_config import (
    PretrainConfig,
    read_pretrain_spec,
    validate_pretrain_config,
)
from fql.runs.run_folder import RunFolder
from fql.settings.dataset_paths import dataset_path
from fql.settings.run_arguments import check_processes, choose_folder
from fql.settings.train_config import Processes
from scripts.shared_args import VerifyData, value_of


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder alone, without rewards.

    fql pretrain --dataset visual-cube-single-play-v0 --run-dir runs/cube-encoder
    fql pretrain --resume runs/cube-encoder
    fql train --task ... --encoder.from runs/cube-encoder/encoder --encoder.mode frozen

    Its result is the folder RUN/encoder, from which the last of these commands starts.
    """

    config: Annotated[PretrainConfig, tyro.conf.arg(name='')]
    run_dir: Path | None = None
    """Folder that the run writes into; it must not hold a run yet. Default:
    runs/pretrain-DATASET-OBJECTIVE-TIME."""
    resume: Path | None = None
    """Run folder to continue, with its stored settings; of these only --steps, --data-dir,
    --updates-per-call, --keep-latest and --keep-interval may be given again. `auto`: continue
    --run-dir if it holds a run, else start it (for job schedulers)."""
    verify_data: VerifyData = 'once'
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def defaults(cls, arguments: list[str]) -> 'Pretrain':
        """What the arguments start from: the stored run to resume, if any."""
        resume = value_of(arguments, '--resume')
        if resume and resume != 'auto':
            return cls(read_pretrain_spec(RunFolder(Path(resume))).config)
        return cls(dataclasses.replace(PretrainConfig(dataset=''), dataset=tyro.MISSING))

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        choose_folder(self.run_dir, self.resume, '')
        check_processes(self.processes, self.run_dir, self.resume)
        validate_pretrain_config(self.config)
        dataset_path(self.config.dataset, self.config.data_dir)
