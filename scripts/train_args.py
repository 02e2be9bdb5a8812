"""The arguments of `fql train`."""

import dataclasses
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import tyro

from encoders.description import read_encoder
from fql.agents.configs import AGENT_CONFIGS, AgentName, FQLConfig
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_spec
from fql.settings.dataset_paths import task_dataset_path
from fql.settings.presets import PresetName, default_config, online_defaults
from fql.settings.run_arguments import check_processes, choose_folder
from fql.settings.train_config import (
    Processes,
    TrainConfig,
    check_given_flags,
    validate_config,
    with_one_alpha,
)
from scripts.shared_args import VerifyData, name_of, value_of


@dataclass(frozen=True)
class Train:
    """Train an agent; evaluate, log and checkpoint on the way.

    fql train --task visual-cube-single-play-singletask-task1-v0 --run-dir runs/cube
    fql train --resume runs/cube

    The defaults are the published settings of the task: fql train --task ... --help shows them.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name='')]
    agent: AgentName = 'fql'
    """The algorithm; --help shows the settings of the one that is named."""
    preset: PresetName = 'default'
    """The settings to start from. `strong`: better than the published ones, or not worse, on all
    small tasks: from images for agent fql (5-step returns), from states for agent qc_fql
    (chunks of five actions, FQL's published settings; docs/steadiness.md). Not for data of your
    own."""
    run_dir: Path | None = None
    """Folder that the run writes into; it must not hold a run yet. Default: runs/TASK-TIME."""
    resume: Path | None = None
    """Run folder to continue, with its stored settings; of these only --steps, --online-steps,
    --data-dir, --updates-per-call, --eval-interval, --eval-workers, --eval-videos,
    --env-step-seconds, --keep-latest, --keep-interval, --shard-params and --wandb-project may be
    given again. `auto`: continue --run-dir if it holds a run, else start it (for job
    schedulers)."""
    source: Annotated[Path | None, tyro.conf.arg(name='from', metavar='RUN')] = None
    """Finished offline run, which is not changed: this run takes its settings and continues with
    --online-steps. It is read only when this run starts."""
    step: int | None = None
    """With --from: the checkpoint to start from; default: its newest."""
    verify_data: VerifyData = 'once'
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def defaults(cls, arguments: list[str]) -> 'Train':
        """What the arguments start from: the stored run to resume, or the task's own settings."""
        resume, task = value_of(arguments, '--resume'), value_of(arguments, '--task')
        agent = value_of(arguments, '--agent') or 'fql'
        preset = value_of(arguments, '--preset') or 'default'
        if resume and resume != 'auto':
            config = read_spec(RunFolder(Path(resume))).config
        elif source := value_of(arguments, '--from'):
            run_dir = Path(value_of(arguments, '--run-dir') or '')
            if resume == 'auto' and RunFolder(run_dir).spec.exists():
                config = begun_from(Path(source), run_dir)
            else:
                config = started_from(Path(source))
        elif agent not in AGENT_CONFIGS or preset not in get_args(PresetName):
            config = TrainConfig(task=tyro.MISSING)  # The parser says what they may be.
        elif task:
            env = value_of(arguments, '--env') or ''
            config = default_config(find_task(task), agent, env, preset)
            if value_of(arguments, '--alpha'):  # It holds in the online phase too.
                config = with_one_alpha(config)
        else:
            config = TrainConfig(task=tyro.MISSING, agent=AGENT_CONFIGS[agent]())
        check_given_flags(config.online, [name_of(argument) for argument in arguments])
        return cls(config, agent=cast(AgentName, config.agent.name))

    @classmethod
    def expand(cls, arguments: list[str]) -> list[str]:
        """The arguments with `--encoder NAME` as `--encoder.size NAME`.

        Raises:
            SystemExit: one is a flag of other agents; names these.
        """
        agent = AGENT_CONFIGS.get(value_of(arguments, '--agent') or 'fql', FQLConfig)
        if not value_of(arguments, '--resume') and not value_of(arguments, '--from'):
            known = {entry.name for entry in dataclasses.fields(agent)}
            for argument in arguments:
                flag = name_of(argument)
                name = flag.removeprefix('no-').replace('-', '_')
                owners = [
                    other.name
                    for other in AGENT_CONFIGS.values()
                    if name in {entry.name for entry in dataclasses.fields(other)}
                ]
                if owners and name not in known:
                    text = f'--{flag} is a setting of {", ".join(owners)}, not of {agent.name}'
                    print(f'fql: {text}', file=sys.stderr)
                    raise SystemExit(2)
        return [re.sub('^--encoder(?==|$)', '--encoder.size', argument) for argument in arguments]

    @property
    def is_begun(self) -> bool:
        """Whether the run of --from has begun: --resume auto continues it, without that source."""
        return (
            self.source is not None
            and self.resume == Path('auto')
            and self.run_dir is not None
            and RunFolder(self.run_dir).spec.exists()
        )

    def check(self) -> None:
        """Raise FQLError, DataError or EncoderError if the arguments make no sense."""
        agent = self.config.agent.name
        if self.agent != agent:
            run = self.run_dir if self.is_begun else self.source or self.resume
            raise FQLError(f'{run} trains agent {agent}, not {self.agent}: leave out --agent')
        if self.preset != 'default' and (self.source or self.resume not in (None, Path('auto'))):
            raise FQLError('--preset chooses the settings of a new run: leave it out')
        if self.step is not None and self.source is None:
            raise FQLError('--step needs --from')
        if self.source is not None and self.resume not in (None, Path('auto')):
            raise FQLError('--from starts a run, --resume continues one; give only one of them')
        if self.source is not None and self.config.online.online_steps == 0:
            raise FQLError('--from needs --online-steps: the run starts where another one ended')
        choose_folder(self.run_dir, self.resume, self.config.task)
        check_processes(self.processes, self.run_dir, self.resume)
        validate_config(self.config)
        task_dataset_path(self.config.task, self.config.dataset, self.config.data_dir)
        encoder = self.config.agent.encoder.source
        if encoder and self.resume is None and self.source is None:
            read_encoder(Path(encoder))


def begun_from(source: Path, run_dir: Path) -> TrainConfig:
    """The stored settings of a run, which must be compared with the `source` that is named now."""
    config = read_spec(RunFolder(run_dir)).config
    return replace(config, online=replace(config.online, source=str(source.absolute())))


def started_from(source: Path) -> TrainConfig:
    """The settings of a run whose online phase begins where the offline run `source` ended."""
    config = read_spec(RunFolder(source)).config
    if config.online.online_steps:
        raise FQLError(f'{source} has an online phase; name an offline run')
    online = online_defaults(find_task(config.task), config.agent.name)
    # None where the run was given --alpha, which holds in the online phase too.
    alpha = config.online.alpha
    return replace(config, online=replace(online, alpha=alpha, source=str(source.absolute())))
