"""The program's output before any command starts its work."""

import os
import shlex
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fql.errors import FQLError
from fql.sweeps.file import ready_sweeps
from scripts.main import COMMANDS, HELP
from scripts.process import SAME_DRAWS, report_in_thread, report_unraisable, report_warning
from scripts.shared_args import value_of

PROGRAM = (sys.executable, '-m', 'scripts.main')
TASK = 'visual-cube-single-play-singletask-task1-v0'
C_LOCALE = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')


def titles(text):
    return [line[:-1] for line in text.splitlines() if line.endswith(':') and line[0] != ' ']


def test_the_overview_has_a_line_for_each_command(fql):
    done = fql('--help')
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    for name in {name.split()[0] for name in COMMANDS}:
        assert sum(line.startswith(f'  {name} ') for line in lines) == 1
    assert '  inspect         Look into: data, batch, checkpoint, critic.' in lines


@pytest.mark.parametrize('called', ['fql', 'python'])
def test_hints_work_as_they_are_typed_where_nothing_is_activated(environment, tmp_path, called):
    """The program's folder is not on the search path, and has a space in its name."""
    folder = tmp_path / 'my programs'
    folder.mkdir()
    (folder / 'fql').write_text(f'#!{sys.executable}\nfrom scripts.main import main\nmain()\n')
    (folder / 'fql').chmod(0o755)
    variables = {**environment, 'PATH': os.defpath, 'FQL_DATA_DIR': str(tmp_path)}
    program = ['my programs/fql'] if called == 'fql' else [sys.executable, '-m', 'scripts.main']

    def call(arguments):
        return subprocess.run(
            arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )

    done = call([*program, 'train', '--task', TASK])
    assert done.returncode == 1
    hint = done.stderr.partition('make it with ')[2].partition(' [')[0]
    arguments = shlex.split(hint)
    assert arguments == [*program, 'prepare', 'visual-cube-single-play-v0']
    assert call([*arguments, '--help']).returncode == 0
    assert f'called: {shlex.join(program)}\n' in call([*program, '--help']).stdout


@pytest.mark.parametrize('family', ['inspect', 'benchmark'])
def test_a_family_of_commands_lists_its_own(fql, family):
    lines = fql(family, '-h').stdout.splitlines()
    members = [name for name in COMMANDS if name.startswith(family)]
    assert [line.split('  ')[1] for line in lines if line.startswith('  ')] == members


@pytest.mark.parametrize('arguments', [(), ('inspect',)])
def test_no_command_is_answered_with_what_there_is(fql, arguments):
    done = fql(*arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('usage: fql')


@pytest.mark.parametrize(
    ('arguments', 'nearest'),
    [
        (('trian',), "fql: no command 'trian'; did you mean train or pretrain?\n"),
        (('inspect', 'dta'), 'inspect data'),
        (('benchmrk', 'data'), 'did you mean benchmark'),
        (('--verison',), '--help'),
        (('qqqq',), 'fql --help names all'),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(fql, arguments, nearest):
    done = fql(*arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert len(done.stderr.splitlines()) == 1
    assert nearest in done.stderr


@pytest.mark.parametrize(
    'arguments',
    [
        ('evaluate', 'r'),
        ('export-encoder', 'r', '--out', 'o'),
        ('export-policy', 'r', '--out', 'o'),
        ('inspect', 'checkpoint', 'r'),
        ('benchmark', 'update'),
        ('benchmark', 'online'),
    ],
)
def test_there_is_no_data_folder_where_no_data_are_read(fql, arguments):
    with pytest.raises(SystemExit) as caught:
        fql(*arguments, '--data-dir', 'd')
    assert caught.value.code == 2


def test_version(fql):
    assert fql('--version').stdout == 'fql 0.1.0\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_help_whose_examples_stand_on_lines_of_their_own(fql, name):
    done = fql(*name.split(), '--help')
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'usage: fql {name}')
    assert COMMANDS[name][0].__doc__.splitlines()[0] in ' '.join(lines)
    examples = [line.strip() for line in COMMANDS[name][0].__doc__.splitlines()]
    for example in (line for line in examples if line.startswith('fql ')):
        assert f'  {example}' in lines
    assert 'None' not in done.stdout
    assert not any(line.endswith('-') for line in lines)  # A split option name.


def test_a_usage_line_has_brackets_around_what_may_be_left_out(fql):
    usage = fql('inspect', 'batch', '--help').stdout.splitlines()[0]
    assert usage == 'usage: fql inspect batch [RUN] [options]'
    assert fql('evaluate', '--help').stdout.startswith('usage: fql evaluate RUN [options]')


def test_the_help_of_training_is_grouped_the_most_used_first(fql):
    text = fql('train', '--help').stdout
    assert titles(text) == [
        *('the run', 'agent', 'encoder', 'training', 'online phase', 'evaluation'),
        *('checkpoints and logs', 'augmentation', 'devices and processes'),
    ]
    flags = [line.split()[0] for line in text.splitlines() if line.startswith('  --')]
    assert flags[:7] == [
        '--task',
        '--agent',
        '--dataset',
        '--run-dir',
        '--resume',
        '--steps',
        '--seed',
    ]
    assert len(flags) == len(set(flags)) > 50
    assert (
        flags.index('--encoder.size') < flags.index('--encoder.mode') < flags.index('--batch-size')
    )


def test_what_another_flag_sets_is_no_flag(fql):
    """A hand-made source would leave a run folder that cannot start."""
    assert '--source' not in fql('train', '--help').stdout
    with pytest.raises(SystemExit) as caught:
        fql('train', '--task', TASK, '--source', 'run')
    assert caught.value.code == 2


def test_the_help_of_pretraining_is_grouped(fql):
    titled = titles(fql('pretrain', '--help').stdout)
    assert titled[:3] == ['the run', 'encoder', 'training']
    assert 'more options' not in titled


def test_help_shows_the_settings_of_a_task(fql):
    assert 'alpha FLOAT' in fql('train', '--help').stdout
    text = ' '.join(fql('train', '--task', TASK, '--help').stdout.split())
    assert f'if there is one. (default: {TASK})' in text
    assert 'for each task. (default: 300.0)' in text


def test_the_help_of_sweeps_names_the_ready_ones(fql):
    names = fql('sweep', '--help').stdout.replace(',', ' ').replace('.', ' ').split()
    assert set(ready_sweeps()) <= set(names)


def test_help_comes_at_once():
    began = time.perf_counter()
    subprocess.run([*PROGRAM, '--help'], check=True, capture_output=True)
    assert time.perf_counter() - began < 3  # 0.2 s; with JAX alone more than a second.


def test_what_makes_no_sense_is_reported_before_anything_heavy_is_imported(run_python, tmp_path):
    done = run_python(
        'import os, sys\n'
        'from pathlib import Path\n'
        'from scripts.main import run\n'
        'from fql.settings.train_config import TrainConfig\n'
        'from fql.runs.run_folder import RunFolder\n'
        'from fql.runs.run_spec import RunSpec, write_spec\n'
        'os.chdir(sys.argv[1])\n'
        'os.makedirs("empty/checkpoints")\n'
        'os.makedirs("run/checkpoints")\n'
        f'spec = RunSpec(TrainConfig("{TASK}"), (64, 64, 9), "uint8", 5)\n'
        'write_spec(RunFolder(Path("run")), spec)\n'
        f'assert run(["train", "--task", "{TASK}", "--steps", "0"]) == 1\n'
        'assert run(["evaluate", "run", "--episodes", "0"]) == 1\n'
        'assert run(["benchmark", "data", "--rounds", "0"]) == 1\n'
        'for arguments in (\n'
        f'    ["train", "--task", "{TASK}", "--data-dir", "nix"],\n'
        '    ["pretrain", "--dataset", "nix"],\n'
        '    ["evaluate", "nix"],\n'
        '    ["report", "nix"],\n'
        '    ["sweep", "nix"],\n'
        '    ["probe", "nix"],\n'
        '    ["prepare", "nix", "--source", "nix.npz"],\n'
        '    ["export-encoder", "nix", "--out", "e"],\n'
        '    ["export-tfds", "nix", "--out", "e"],\n'
        '    ["inspect", "data", "nix"],\n'
        f'    ["inspect", "batch", "--task", "{TASK}", "--data-dir", "nix", "--out", "b"],\n'
        '    ["inspect", "checkpoint", "nix"],\n'
        '    ["benchmark", "train", "--task", "nix"],\n'
        '    ["benchmark", "data", "--data-dir", "nix"],\n'
        '    *([name, folder, "--out", "e"] for name in ("export-encoder", "export-policy")\n'
        '      for folder in ("empty", "run")),\n'
        '    *([*name.split(), folder] for folder in ("empty", "run") for name in\n'
        '      ("evaluate", "inspect checkpoint", "inspect critic", "probe", "train --resume")),\n'
        f'    ["train", "--task", "{TASK}", "--data-dir", ".", "--dataset", "run",\n'
        '     "--encoder.from", "empty", "--encoder.mode", "frozen"],\n'
        '):\n'
        '    assert run(arguments) == 1, arguments\n'
        'assert not {"jax", "tensorflow", "orbax", "matplotlib", "submitit"} & set(sys.modules)\n',
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 32


@pytest.mark.parametrize('encoding', [None, 'ascii'])
@pytest.mark.parametrize(
    ('arguments', 'code'),
    [
        (('--help',), 0),
        (('train', '--help'), 0),
        (('inspect', '--help'), 0),
        (('train', '--stepz', '3'), 2),
        (('prepare', 'd', '--source', '/nowhere/é.npz'), 1),
    ],
)
def test_the_c_locale_breaks_nothing(tmp_path, arguments, code, encoding):
    environment = {**os.environ, **C_LOCALE, 'FQL_DATA_DIR': str(tmp_path)}
    environment.pop('PYTHONIOENCODING', None)
    if encoding:
        environment['PYTHONIOENCODING'] = encoding
    done = subprocess.run([*PROGRAM, *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == code
    assert b'Traceback' not in done.stderr
    assert done.stdout.isascii()


def test_names_are_utf_8_whatever_the_locale(tmp_path, environment):
    """Orbax and TensorFlow take them as UTF-8."""
    file = tmp_path / 'größe.toml'
    file.write_text('tasks = ["own"]\n[settings]\ndataset = "d"\n[variants."groß"]\n', 'utf-8')
    done = subprocess.run(
        [*PROGRAM, 'sweep', file, '--dir', 'dir-ö', '--dry-run'],
        env={**environment, **C_LOCALE},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'dir-ö/own/fql/groß/seed-0'.encode() in done.stdout


def test_a_current_folder_that_was_deleted(tmp_path, environment):
    place = tmp_path / 'place'
    place.mkdir()
    done = subprocess.run(
        [
            '/bin/sh',
            '-c',
            'rmdir "$PWD"; exec "$@"',
            'sh',
            *PROGRAM,
            'prepare',
            'x',
            '--source',
            'y',
        ],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == 'fql: the current folder was deleted; go to another one\n'


CLOSED = """
import os, subprocess, sys
from pathlib import Path
from scripts import process

for descriptor in (0, 1, 2):
    os.close(descriptor)
sys.stdin = sys.stdout = sys.stderr = None
process.open_standard_streams()
with open(sys.argv[1], 'w') as file:
    print('lost')
    os.write(2, b'lost')
    file.write('kept')
"""


def test_what_is_printed_where_streams_are_closed_goes_into_no_file(run_python, tmp_path):
    assert run_python(CLOSED, tmp_path / 'file').returncode == 0
    assert (tmp_path / 'file').read_text() == 'kept'


def test_a_closed_output_is_no_fault():
    arguments = [*PROGRAM, 'tasks', 'pointmaze']
    done = subprocess.run(['sh', '-c', f'{shlex.join(arguments)} <&- >&- 2>&-'], check=False)
    assert done.returncode == 0


def test_a_device_that_is_not_there_is_reported_in_one_line(fql, assert_one_line, monkeypatch):
    def run(args):
        raise RuntimeError("Unable to initialize backend 'cuda': no such\\nand more")

    monkeypatch.setattr('scripts.quickstart.run', run)
    assert_one_line(fql('quickstart'), "Unable to initialize backend 'cuda'")


@pytest.mark.parametrize('arguments', [('train', '--help'), ('--help',)])
def test_an_output_that_nobody_reads_is_no_fault(arguments):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as closed:
        done = subprocess.run(
            [*PROGRAM, *arguments], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b'')


def test_a_broken_pipe_that_is_not_the_output_is_reported(fql, assert_one_line, monkeypatch):
    def run(args):
        raise BrokenPipeError('a worker')

    monkeypatch.setattr('scripts.quickstart.run', run)
    assert_one_line(fql('quickstart'), 'a worker')


def test_the_home_folder_stands_behind_an_equals_sign(fql, assert_one_line, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for arguments in (('--source=~/x.npz',), ('--source', '~/x.npz')):
        done = fql('prepare', 'd', *arguments, '--data-dir=~/data')
        assert_one_line(done, f'{tmp_path}/x.npz')
    assert_one_line(fql('train', '--resume=~/run'), f'{tmp_path}/run is not a run folder')
    assert not Path('~').exists()


@pytest.mark.parametrize('name', SAME_DRAWS)
def test_no_variable_of_jax_makes_another_run(fql, monkeypatch, name):
    monkeypatch.setenv(name, 'what another program wants')
    assert fql('tasks', 'pointmaze').returncode == 0
    assert os.environ[name] == SAME_DRAWS[name]


def test_a_flag_is_read_before_the_words_are_parsed():
    assert value_of([], '--task') is None
    assert value_of(['--task'], '--task') is None
    assert value_of(['--seed', '1', '--task', 'a'], '--task') == 'a'
    assert value_of(['--task=a=b'], '--task') == 'a=b'
    assert value_of(['--task', 'a', '--task=b'], '--task') == 'b'


def test_of_a_setting_given_twice_the_last_counts(fql):
    """Also where other defaults depend on it: alpha is 10 for the antmaze, 300 for the cube."""
    tasks = ('--task', 'antmaze-umaze-v2', '--task', 'cube-single-play-singletask-task1-v0')
    assert fql('train', *tasks, '--help').stdout == fql('train', *tasks[2:], '--help').stdout


def test_a_ctrl_c_that_falls_into_a_callback_is_not_lost(capfd, monkeypatch):
    class Freed:
        def __del__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, 'unraisablehook', report_unraisable)
    Freed()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(10)
    assert capfd.readouterr().err == ''


def test_a_ctrl_c_that_orbax_turns_into_a_fault_is_none(fql, monkeypatch):
    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise FQLError('cannot be read') from error

    monkeypatch.setattr('scripts.tasks.run', interrupted)
    done = fql('tasks')
    assert (done.returncode, done.stderr) == (130, '\nfql: interrupted\n')


@pytest.mark.parametrize(('fault', 'is_shown'), [('cannot schedule new', False), ('else', True)])
def test_faults_in_threads(capfd, monkeypatch, fault, is_shown):
    """Those of Orbax's threads at the program's end follow a fault that was reported."""
    monkeypatch.setattr(threading, 'excepthook', report_in_thread)
    pool = ThreadPoolExecutor()
    pool.shutdown()
    work = pool.submit if fault == 'cannot schedule new' else int
    thread = threading.Thread(target=work, args=('else',))
    thread.start()
    thread.join()
    assert ('Traceback' in capfd.readouterr().err) == is_shown


def test_a_compilation_cache_that_takes_nothing_is_reported_once(capsys, monkeypatch):
    others = []
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/full')
    monkeypatch.setattr('scripts.process.show_warning', lambda text, *_: others.append(str(text)))
    with warnings.catch_warnings():
        warnings.resetwarnings()
        monkeypatch.setattr(warnings, 'showwarning', report_warning)
        for name in ('jit_a', 'jit_b'):
            warnings.warn(
                f"Error writing persistent compilation cache entry for '{name}': OSError: "
                '[Errno 28] No space left on device',
                stacklevel=1,
            )
        warnings.warn('something else', stacklevel=1)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('compiled programs are not kept in /full: Error writing')
    assert others == ['something else']


def test_a_narrow_terminal_gets_help(fql, monkeypatch):
    monkeypatch.setenv('COLUMNS', '1')
    assert max(map(len, fql('report', '--help').stdout.splitlines())) > 10


def test_a_library_that_refuses_its_environment_variable(fql, assert_one_line, monkeypatch):
    def imported(name):
        raise ValueError("invalid literal for int() with base 10: 'x'")

    monkeypatch.setattr('scripts.main.importlib.import_module', imported)
    assert_one_line(fql('tasks'), "'x' (is an environment variable wrong?)")


def test_a_library_that_does_not_fit_into_memory(fql, assert_one_line, monkeypatch):
    def imported(name):
        raise ImportError('libtensorflow_cc.so.2: failed to map segment from shared object\nmore')

    monkeypatch.setattr('scripts.main.importlib.import_module', imported)
    assert_one_line(fql('tasks'), 'does not fit into the memory', 'libtensorflow_cc')


def test_variables_of_libraries_that_are_junk(run_python, environment):
    """ogbench imports tqdm; TensorFlow ends the process at a flag that it does not know."""
    code = (
        'import os, sys\n'
        'from scripts.main import run\n'
        'code = run(["train", "--task", "antmaze-medium-navigate-v0"])\n'
        'assert code == 1, code\n'
        'del os.environ["TQDM_NCOLS"]\n'
        'assert run(["tasks"]) == 0\n'
        'import tensorflow\n'
    )
    prefix = 'import os; os.environ.update(TQDM_NCOLS="x", TF_XLA_FLAGS="--junk")\n'
    done = run_python(prefix + code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fql: invalid literal for int() with base 10: 'x' (is an env")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('name', ['a\nb', 'a\\b', 'a\x1b[2J'])
def test_a_name_that_would_break_messages_or_checkpoints_is_refused(fql, assert_one_line, name):
    assert_one_line(fql('report', name), f'{name!r} has a line break, a backslash')
    assert {'-h', '--help'} == HELP
