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

import _thread
import difflib
import gc
import importlib
import importlib.metadata
import os
import select
import threading
import warnings
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import tyro

from data_pipeline.data_dir import compilation_cache_dir
from data_pipeline.errors import DataError
from encoders.errors import EncoderError
from fql.command import command
from fql.errors import FQLError, comes_from_interrupt, first_line
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
show_warning = warnings.showwarning

SAME_DRAWS = {
    'JAX_ENABLE_X64': '0',
    'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
    'JAX_THREEFRY_PARTITIONABLE': '1',
    'JAX_RANDOM_SEED_OFFSET': '0',
    'JAX_HIGH_DYNAMIC_RANGE_GUMBEL': '0',
    'JAX_NUMPY_DTYPE_PROMOTION': 'standard',
    'JAX_NUMPY_RANK_PROMOTION': 'allow',
    'JAX_DISABLE_JIT': '0',
}
"""JAX's defaults of settings that may be set for another program. Other values would change every
draw, and so every run, or fail."""


def main() -> NoReturn:
    """Run a command and exit.

    0: done; 1: a fault the user can fix; 2: bad arguments; 42: a run was asked to stop and can be
    resumed; 130: interrupted; 141: what reads the output has ended, as `head` does.
    """
    if sys.getfilesystemencoding() != 'utf-8':  # As which Orbax and TensorFlow take all names.
        os.execv(sys.executable, [sys.executable, '-X', 'utf8', *sys.orig_argv[1:]])
    open_standard_streams()
    keep_freed_memory()
    sys.unraisablehook = report_unraisable
    threading.excepthook = report_in_thread
    warnings.showwarning = report_warning
    for stream in (sys.stdout, sys.stderr):
        # In the C locale (cron, minimal containers) no text may cause a fault.
        stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its exit; that output is discarded.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = 141
    sys.exit(code)


def open_standard_streams() -> None:
    """Give standard streams that are closed, as by some daemons, a file to use.

    Otherwise the next file that is opened would take their place and get the printed text.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, 'w')
    sys.stderr = sys.stderr or os.fdopen(2, 'w')


def report_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Python's own report, except for reads that Orbax gave up when another one failed.

    These end after its event loop; their traceback would hide the reported fault. A Ctrl-C that
    fell into a callback of a library, where it would be lost, is repeated.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()  # Not here, where it is lost, too.
    elif str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def report_in_thread(fault: threading.ExceptHookArgs) -> None:
    """Python's own report, except for a part of a save that Orbax begins when the program ends.

    Another part failed then, and that fault was reported.
    """
    if not str(fault.exc_value).startswith('cannot schedule new futures after'):
        threading.__excepthook__(fault)


def report_warning(message: Any, *place: Any, **more: Any) -> None:
    """Python's own report, except for JAX's of each program that its cache does not take.

    On a disk that is full or read-only there are dozens of them; one line says it.
    """
    if 'persistent compilation cache' not in str(message):
        show_warning(message, *place, **more)
        return
    warnings.filterwarnings('ignore', '.*persistent compilation cache')
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR', '')
    print(f'compiled programs are not kept in {folder}: {first_line(message)}', file=sys.stderr)


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
        # Compiled programs are kept, small ones too, so that a second start is quick.
        with suppress(ModuleNotFoundError):  # Where little more than JAX is installed.
            os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(compilation_cache_dir()))
        os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        os.environ.update(SAME_DRAWS)
        # tf.data compiles nothing with XLA, but a flag that it does not know ends the process.
        os.environ.pop('TF_XLA_FLAGS', None)
        # Without it, TensorFlow imports Keras 3 and Matplotlib, a sixth of its import time.
        os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
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
    except RuntimeError as error:  # JAX's, where $JAX_PLATFORMS names a missing platform.
        if 'initialize backend' not in str(error):
            raise
        print(f'fql: {first_line(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return report_interrupt()


def report_interrupt() -> int:
    """Say that a Ctrl-C ended the command; the exit code."""
    print('\nfql: interrupted', file=sys.stderr)
    return 130


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


def is_unread(stream: TextIO) -> bool:
    """Whether a pipe's other end is closed."""
    poll = select.poll()
    poll.register(stream, 0)
    return bool(poll.poll(0))


def expand_home(argument: str) -> str:
    """An argument whose ~, which a shell leaves alone after an =, is the home folder."""
    is_flag = argument.startswith('--')
    flag, equals, value = argument.partition('=') if is_flag else ('', '', argument)
    return flag + equals + (os.path.expanduser(value) if value.startswith('~') else value)


if __name__ == '__main__':
    main()
