"""The `fql` program: reads the arguments and hands them to the command's own file.

Spawned processes import this module again, and `--help` must answer at once. So nothing heavy may
be imported here or where arguments are declared.
"""

# ruff: noqa: E402
import sys
from multiprocessing import parent_process
from pathlib import Path

from fql.stopping import leave_on_interrupt, leave_on_signals, raise_on_interrupt

RESUMABLE = {'train', 'pretrain', 'quickstart', 'sweep'}
"""Commands that can be stopped at any moment and run again."""

# Before the imports below, which take a while.
if parent_process() is None:
    if RESUMABLE & set(sys.argv[1:2]):
        leave_on_signals()
    elif Path(sys.argv[0]).name in ('fql', 'main.py'):  # Not where tests import this.
        leave_on_interrupt()

import difflib
import gc
import importlib
import importlib.metadata
import os
import traceback
from typing import Any, NoReturn

import tyro

from data_pipeline.errors import DataError, first_line
from encoders.errors import EncoderError
from fql.command import command
from fql.errors import FQLError
from fql.training.host_memory import keep_freed_memory
from scripts.benchmark.args import (
    BenchmarkData,
    BenchmarkFaults,
    BenchmarkLatents,
    BenchmarkOnline,
    BenchmarkTrain,
    BenchmarkUpdate,
)
from scripts.collect_args import Collect
from scripts.evaluate_args import Evaluate
from scripts.export_encoder_args import ExportEncoder
from scripts.export_policy_args import ExportPolicy
from scripts.export_tfds_args import ExportTfds
from scripts.help import FAMILIES, command_help, overview
from scripts.inspect_args import InspectBatch, InspectCheckpoint, InspectCritic, InspectData
from scripts.prepare_args import Prepare
from scripts.pretrain_args import Pretrain
from scripts.probe_args import Probe
from scripts.process import (
    comes_from_interrupt,
    is_unread,
    open_standard_streams,
    report_faults,
    set_library_variables,
)
from scripts.quickstart_args import Quickstart
from scripts.report_args import Report
from scripts.shared_args import check_values
from scripts.sweep_args import Sweep
from scripts.tasks_args import Tasks
from scripts.train_args import Train

COMMANDS: dict[str, tuple[Any, str]] = {
    'quickstart': (Quickstart, 'scripts.quickstart'),
    'tasks': (Tasks, 'scripts.tasks'),
    'collect': (Collect, 'scripts.collect'),
    'prepare': (Prepare, 'scripts.prepare'),
    'train': (Train, 'scripts.train'),
    'evaluate': (Evaluate, 'scripts.evaluate'),
    'sweep': (Sweep, 'scripts.sweep'),
    'report': (Report, 'scripts.report'),
    'pretrain': (Pretrain, 'scripts.pretrain'),
    'probe': (Probe, 'scripts.probe'),
    'export-encoder': (ExportEncoder, 'scripts.export_encoder'),
    'export-policy': (ExportPolicy, 'scripts.export_policy'),
    'export-tfds': (ExportTfds, 'scripts.export_tfds'),
    'inspect data': (InspectData, 'scripts.inspect_data'),
    'inspect batch': (InspectBatch, 'scripts.inspect_batch'),
    'inspect checkpoint': (InspectCheckpoint, 'scripts.inspect_checkpoint'),
    'inspect critic': (InspectCritic, 'scripts.inspect_critic'),
    'benchmark update': (BenchmarkUpdate, 'scripts.benchmark.update'),
    'benchmark train': (BenchmarkTrain, 'scripts.benchmark.train'),
    'benchmark data': (BenchmarkData, 'scripts.benchmark.data'),
    'benchmark latents': (BenchmarkLatents, 'scripts.benchmark.latents'),
    'benchmark online': (BenchmarkOnline, 'scripts.benchmark.online'),
    'benchmark faults': (BenchmarkFaults, 'scripts.benchmark.faults'),
}
"""The class of each command's arguments, and the module whose `run` does the work.

Such a class may have `defaults(arguments)`, the arguments to start from, `expand(arguments)`,
which writes short forms out, and `check()`, which raises FQLError on what makes no sense, before
anything heavy is imported.
"""

HELP = {'-h', '--help'}


def main() -> NoReturn:
    """Run a command and exit.

    0: done; 1: a fault the user can fix; 2: bad arguments; 42: a run was asked to stop and can be
    resumed; 130: interrupted; 141: what reads the output has ended, as `head` does.
    """
    if sys.getfilesystemencoding() != 'utf-8':  # As which Orbax and TensorFlow take all names.
        os.execv(sys.executable, [sys.executable, '-X', 'utf8', *sys.orig_argv[1:]])
    open_standard_streams()
    report_faults()
    keep_freed_memory()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its exit; that output is discarded.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 141
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        arguments = [expand_home(argument) for argument in arguments]
        name = next(
            (name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None
        )
        if name is None:
            return answer(arguments)
        if any(variable.startswith('TQDM_') for variable in os.environ):
            imported('tqdm')  # It may read junk there, also where tasks are looked up.
        declared, module = COMMANDS[name]
        arguments = arguments[len(name.split()) :]
        if hasattr(declared, 'expand'):
            arguments = declared.expand(arguments)
        default = declared.defaults(arguments) if hasattr(declared, 'defaults') else None
        if HELP & set(arguments):
            print(command_help(f'fql {name}', declared, default))
            return 0
        args: Any = tyro.cli(
            declared,
            default=default,
            prog=f'fql {name}',
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        check_values(args)
        if hasattr(args, 'check'):
            args.check()
        set_library_variables()
        command_module = imported(module)
        raise_on_interrupt()
        return command_module.run(args) or 0
    except (FQLError, DataError, EncoderError) as error:
        if comes_from_interrupt(error):
            return report_interrupt()
        print(f'fql: {error}', file=sys.stderr)
        return 1
    except OSError as error:  # A full disk, a folder that must not be written, and the like.
        if isinstance(error, BrokenPipeError) and is_unread(sys.stdout):
            raise
        is_gone = isinstance(error, FileNotFoundError) and error.filename is None
        what = 'the current folder was deleted; go to another one' if is_gone else error
        print(f'fql: {what}', file=sys.stderr)
        return 1
    except (RuntimeError, AssertionError) as error:
        if not (fault := platform_fault(error)):
            raise
        print(f'fql: {fault}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return report_interrupt()


def report_interrupt() -> int:
    """Say that a Ctrl-C ended the command; the exit code."""
    print('\nfql: interrupted', file=sys.stderr)
    return 130


def platform_fault(error: Exception) -> str:
    """What is wrong with $JAX_PLATFORMS, if that is why JAX raised; else empty."""
    if 'initialize backend' in str(error):
        return first_line(error)
    raising = traceback.extract_tb(error.__traceback__)[-1]
    # JAX asserts that there is a platform, once it has passed over those without a device.
    if isinstance(error, AssertionError) and raising.filename.endswith('xla_bridge.py'):
        chosen = os.environ.get('JAX_PLATFORMS', '')
        return f'JAX found no device of JAX_PLATFORMS={chosen}; unset it to take those there are'
    return ''


def imported(module: str) -> Any:
    """A command's own file, with all that it needs.

    Raises:
        FQLError: a library cannot be imported with the environment variables that it reads then.
    """
    gc.disable()  # Imports make no garbage, and looking for it takes a fifth of their time.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if 'failed to map' not in str(error):
            raise
        message = f'a library does not fit into the memory that is allowed: {first_line(error)}'
        raise FQLError(message) from error
    except ValueError as error:  # JAX's of JAX_..., tqdm's of TQDM_..., Matplotlib's of MPLBACKEND.
        raise FQLError(f'{first_line(error)} (is an environment variable wrong?)') from error
    finally:
        gc.enable()


def answer(arguments: list[str]) -> int:
    """Answer arguments that name no command: help, the version, or the nearest names."""
    first = arguments[0] if arguments else ''
    if first == '--version':
        print(f'fql {importlib.metadata.version("fql-pixels")}')
        return 0
    family = first if first in FAMILIES else ''
    rest = arguments[1:] if family else arguments
    if not rest or rest[0] in HELP:
        summaries = {name: cls.__doc__.split('\n')[0] for name, (cls, _) in COMMANDS.items()}
        print(overview(summaries, family), file=sys.stdout if rest else sys.stderr)
        return 0 if rest else 2
    asked = ' '.join(arguments[: 2 if family else 1])
    names = COMMANDS if family else [*COMMANDS, *FAMILIES]
    nearest = difflib.get_close_matches(asked, names, cutoff=0.5)
    hint = f'did you mean {" or ".join(nearest)}?' if nearest else f'{command("--help")} names all'
    print(f'fql: no command {asked!r}; {hint}', file=sys.stderr)
    return 2


def expand_home(argument: str) -> str:
    """An argument whose ~, which a shell leaves alone after an =, is the home folder."""
    is_flag = argument.startswith('--')
    flag, equals, value = argument.partition('=') if is_flag else ('', '', argument)
    return flag + equals + (os.path.expanduser(value) if value.startswith('~') else value)


if __name__ == '__main__':
    main()
