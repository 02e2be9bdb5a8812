"""The `fql` program: reads the arguments and hands them to the command's own file.

Spawned processes import this module again, and `--help` must answer at once, so that nothing heavy
may be imported here, nor where arguments are declared.
"""

import importlib
import os
import sys
from typing import Any, NoReturn

import tyro

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.errors import DataError
from encoders.errors import EncoderError
from fql.errors import FQLError
from fql.training.host_memory import keep_freed_memory
from scripts.benchmark.data_args import BenchmarkData
from scripts.benchmark.faults_args import BenchmarkFaults
from scripts.benchmark.latents_args import BenchmarkLatents
from scripts.benchmark.scaling_args import BenchmarkScaling
from scripts.benchmark.train_args import BenchmarkTrain
from scripts.benchmark.update_args import BenchmarkUpdate
from scripts.collect_args import Collect
from scripts.compare_args import Compare
from scripts.evaluate_args import Evaluate
from scripts.export_encoder_args import ExportEncoder
from scripts.export_tfds_args import ExportTfds
from scripts.inspect_batch_args import InspectBatch
from scripts.inspect_checkpoint_args import InspectCheckpoint
from scripts.inspect_data_args import InspectData
from scripts.prepare_args import Prepare
from scripts.pretrain_args import Pretrain
from scripts.probe_args import Probe
from scripts.quickstart_args import Quickstart
from scripts.train_args import Train

COMMANDS: dict[str, tuple[Any, str]] = {
    'quickstart': (Quickstart, 'scripts.quickstart'),
    'collect': (Collect, 'scripts.collect'),
    'prepare': (Prepare, 'scripts.prepare'),
    'train': (Train, 'scripts.train'),
    'evaluate': (Evaluate, 'scripts.evaluate'),
    'compare': (Compare, 'scripts.compare'),
    'pretrain': (Pretrain, 'scripts.pretrain'),
    'probe': (Probe, 'scripts.probe'),
    'export-encoder': (ExportEncoder, 'scripts.export_encoder'),
    'export-tfds': (ExportTfds, 'scripts.export_tfds'),
    'inspect data': (InspectData, 'scripts.inspect_data'),
    'inspect batch': (InspectBatch, 'scripts.inspect_batch'),
    'inspect checkpoint': (InspectCheckpoint, 'scripts.inspect_checkpoint'),
    'benchmark update': (BenchmarkUpdate, 'scripts.benchmark.update'),
    'benchmark scaling': (BenchmarkScaling, 'scripts.benchmark.scaling'),
    'benchmark train': (BenchmarkTrain, 'scripts.benchmark.train'),
    'benchmark data': (BenchmarkData, 'scripts.benchmark.data'),
    'benchmark latents': (BenchmarkLatents, 'scripts.benchmark.latents'),
    'benchmark faults': (BenchmarkFaults, 'scripts.benchmark.faults'),
}
"""The class of each command's arguments, and the module whose `run` does the work.

Such a class may have `defaults(words)`, the arguments to start from, `expand(words)`, which writes
short forms out, and `check()`, which raises FQLError on what makes no sense, before anything heavy
is imported.
"""


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


def run(words: list[str]) -> int:
    """Runs a command and returns its exit code."""
    try:
        name = command_name(words)
        declared, module = COMMANDS[name]
        words = words[len(name.split()) :]
        if hasattr(declared, 'expand'):
            words = declared.expand(words)
        args: Any = tyro.cli(
            declared,
            default=declared.defaults(words) if hasattr(declared, 'defaults') else None,
            prog=f'fql {name}',
            args=words,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        if hasattr(args, 'check'):
            args.check()
        if hasattr(args, 'data_dir'):
            # Compiled programs are kept, small ones too, so that a second start is quick.
            cache = resolve_data_dir(args.data_dir) / 'compilation-cache'
            os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
            os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        return importlib.import_module(module).run(args) or 0
    except (FQLError, DataError, EncoderError) as error:
        print(f'fql: {error}', file=sys.stderr)
        return 1
    except OSError as error:  # A full disk, a folder that must not be written, and the like.
        print(f'fql: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nfql: interrupted', file=sys.stderr)
        return 130


def command_name(words: list[str]) -> str:
    """The command that the first word, or the first two, name."""
    for count in (1, 2):
        if (name := ' '.join(words[:count])) in COMMANDS:
            return name
    print(f'fql: no such command; there are {", ".join(COMMANDS)}', file=sys.stderr)
    raise SystemExit(2)


if __name__ == '__main__':
    main()
