"""The process of a command: its standard streams, faults and warnings, libraries' variables."""

import os
import select
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any, TextIO

from data_pipeline.data_dir import compilation_cache_dir
from data_pipeline.errors import first_line

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


def set_library_variables() -> None:
    """Set the environment variables that JAX and TensorFlow read at their import."""
    # Compiled programs are kept, small ones too, so that a second start is quick.
    with suppress(ModuleNotFoundError):  # Where little more than JAX is installed.
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(compilation_cache_dir()))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    os.environ.update(SAME_DRAWS)
    # tf.data compiles nothing with XLA, but a flag that it does not know ends the process.
    os.environ.pop('TF_XLA_FLAGS', None)
    # Without it, TensorFlow imports Keras 3 and Matplotlib, a sixth of its import time.
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')


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
    for stream in (sys.stdout, sys.stderr):
        # In the C locale (cron, minimal containers) no text may cause a fault.
        stream.reconfigure(errors='backslashreplace')  # type: ignore[union-attr]


def is_unread(stream: TextIO) -> bool:
    """Whether a pipe's other end is closed."""
    poll = select.poll()
    poll.register(stream, 0)
    return bool(poll.poll(0))


def report_faults() -> None:
    """Report what is raised or warned outside the command itself, as the functions below do."""
    sys.unraisablehook = report_unraisable
    threading.excepthook = report_in_thread
    warnings.showwarning = report_warning


def report_unraisable(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Python's own report, except for reads that Orbax gave up when another one failed.

    These end after its event loop; their traceback would hide the reported fault. A Ctrl-C that
    fell into a callback of a library, where it would be lost, is repeated.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        main = threading.main_thread().ident
        again = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        again.start()  # Not raised here, where it would be lost, too.
    elif str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def report_in_thread(fault: threading.ExceptHookArgs) -> None:
    """Python's own report, except for a part of a save that Orbax begins when the program ends.

    Another part failed then, and that fault was reported.
    """
    if not str(fault.exc_value).startswith('cannot schedule new futures after'):
        threading.__excepthook__(fault)


def comes_from_interrupt(error: BaseException | None) -> bool:
    """Whether an exception was raised because of a Ctrl-C, which Orbax turns into its own fault."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


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
