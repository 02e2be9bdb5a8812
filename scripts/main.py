"""The `fql` program: reads the arguments and hands them to the command's own file.

Spawned processes import this module again, so that nothing heavy may be imported here.
"""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import tyro

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.errors import DataError
from encoders.errors import EncoderError
from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.training.config import TrainConfig
from fql.training.host_memory import keep_freed_memory
from fql.training.presets import default_config
from fql.training.pretrain_config import PretrainConfig, read_pretrain_spec
from fql.training.run_folder import RunFolder, read_spec
from scripts import arguments

DESCRIPTION = 'Flow Q-Learning from pixels: offline reinforcement learning on image datasets.'

MODULES = {
    arguments.Quickstart: 'scripts.quickstart',
    arguments.Collect: 'scripts.collect',
    arguments.Prepare: 'scripts.prepare',
    arguments.ExportTfds: 'scripts.export_tfds',
    arguments.Train: 'scripts.train',
    arguments.Pretrain: 'scripts.pretrain',
    arguments.Probe: 'scripts.probe',
    arguments.ExportEncoder: 'scripts.export_encoder',
    arguments.Evaluate: 'scripts.evaluate',
    arguments.Compare: 'scripts.compare',
    arguments.InspectData: 'scripts.inspect_data',
    arguments.InspectBatch: 'scripts.inspect_batch',
    arguments.InspectCheckpoint: 'scripts.inspect_checkpoint',
    arguments.BenchmarkUpdate: 'scripts.benchmark.update',
    arguments.BenchmarkScaling: 'scripts.benchmark.scaling',
    arguments.BenchmarkTrain: 'scripts.benchmark.train',
    arguments.BenchmarkData: 'scripts.benchmark.data',
    arguments.BenchmarkLatents: 'scripts.benchmark.latents',
    arguments.BenchmarkFaults: 'scripts.benchmark.faults',
}


def main() -> NoReturn:
    """Runs a command and exits.

    0: done; 1: a fault the user can mend; 2: bad arguments; 42: a run was asked to stop and can be
    resumed; 130: interrupted.
    """
    keep_freed_memory()
    sys.unraisablehook = report_unraisable
    sys.exit(run(sys.argv[1:]))


def report_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Python's own report, but for reads that Orbax gave up when another one failed.

    They end after its event loop has, and a traceback of that would hide the fault that is told.
    """
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def run(argv: list[str]) -> int:
    """Runs a command and returns its exit code."""
    try:
        argv = _encoder_size(argv)
        command: Any = tyro.cli(  # type: ignore[call-overload]
            arguments.command_type(_train_default(argv), _pretrain_default(argv)),
            prog='fql',
            description=DESCRIPTION,
            args=argv,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        if isinstance(command, arguments.Inspect | arguments.Benchmark):
            command = command.what
        if hasattr(command, 'data_dir'):
            # Compiled programs are kept, small ones too, so that a second start is quick.
            cache = resolve_data_dir(command.data_dir) / 'compilation-cache'
            os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
            os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        return importlib.import_module(MODULES[type(command)]).run(command) or 0
    except (FQLError, DataError, EncoderError) as error:
        print(f'fql: {error}', file=sys.stderr)
        return 1
    except OSError as error:  # A full disk, a folder that must not be written, and the like.
        print(f'fql: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nfql: interrupted', file=sys.stderr)
        return 130


def _train_default(argv: list[str]) -> TrainConfig | None:
    """What `fql train` starts from: the stored run to resume, or the task's own settings."""
    if argv[:1] != ['train']:
        return None
    resume = _value_of(argv, '--resume')
    if resume and resume != 'auto':
        return read_spec(RunFolder(Path(resume))).config
    task, agent = _value_of(argv, '--task'), _value_of(argv, '--agent') or 'fql'
    if agent not in AGENT_CONFIGS:
        return None  # The parser says what it may be.
    if task:
        return default_config(find_task(task), agent)
    return TrainConfig(task=tyro.MISSING, agent=AGENT_CONFIGS[agent]())


def _pretrain_default(argv: list[str]) -> PretrainConfig | None:
    """What `fql pretrain` starts from: the stored run to resume, if any."""
    resume = _value_of(argv, '--resume') if argv[:1] == ['pretrain'] else None
    if resume and resume != 'auto':
        return read_pretrain_spec(RunFolder(Path(resume))).config
    return None


def _encoder_size(argv: list[str]) -> list[str]:
    """The arguments with `--encoder NAME`, of `fql train`, as `--encoder.size NAME`."""
    if argv[:1] != ['train']:
        return argv
    return [re.sub(r'^--encoder(?==|$)', '--encoder.size', argument) for argument in argv]


def _value_of(argv: list[str], flag: str) -> str | None:
    for argument, following in zip(argv, [*argv[1:], ''], strict=True):
        if argument == flag:
            return following
        if argument.startswith(f'{flag}='):
            return argument.removeprefix(f'{flag}=')
    return None


if __name__ == '__main__':
    main()
