"""Wrong input: one clear line, a non-zero exit code, no partial files."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import QUICKSTART_TASK
from scripts.main import COMMANDS
from scripts.shared_args import BOUNDS_OF_ARGUMENTS

CUBE_TASK = 'visual-cube-single-play-singletask-task1-v0'
SMALL = (
    '--steps',
    2,
    '--batch-size',
    8,
    '--hidden-dims',
    8,
    '--flow-steps',
    1,
    '--eval-interval',
    0,
)


@pytest.fixture(scope='module')
def finished_run(run_fql, prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp('runs') / 'run'
    done = run_fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', run)
    assert done.returncode == 0, done.stderr
    return run


def test_unknown_task(assert_one_line, fql, tmp_path):
    done = fql('train', '--task', 'visual-cube-singel-play-singletask-task1-v0')
    assert_one_line(done, 'unknown task', CUBE_TASK)


def test_missing_dataset_says_how_to_make_it(assert_one_line, fql, tmp_path):
    run = tmp_path / 'run'
    done = fql('train', '--task', CUBE_TASK, '--run-dir', run)
    assert_one_line(done, 'fql prepare visual-cube-single-play-v0')
    assert not run.exists()


def test_the_small_tasks_data_are_collected(assert_one_line, fql, tmp_path):
    done = fql('train', '--task', 'visual-puzzle-small-play-singletask-v0', '--data-dir', tmp_path)
    collect = 'collect fql.envs.small_puzzle:visual-puzzle-small-v0 --episodes 100'
    place = f'--data-dir {tmp_path}'
    prepare = 'prepare visual-puzzle-small-play-v0 --source '
    prepare += f'{tmp_path}/collected/visual-puzzle-small-play-v0.npz {place}'
    assert_one_line(
        done, f'make it with fql {collect} --episode-steps 500 {place}, then fql {prepare},'
    )
    done = fql('train', '--task', QUICKSTART_TASK, '--data-dir', tmp_path)
    assert_one_line(done, f'make it with fql quickstart {place},')


def test_missing_source(assert_one_line, fql):
    assert_one_line(fql('prepare', 'd', '--source', '/nowhere/d.npz'), '/nowhere/d.npz')
    done = fql('prepare', 'd', '--source', 'https://example.org/d.npz')
    assert_one_line(done, 'not a URL; download it first')


@pytest.mark.parametrize('path', ['', '.', '/'])
def test_a_path_that_names_no_file(assert_one_line, fql, path):
    assert_one_line(fql('prepare', 'd', '--source', path), 'must name a file')
    done = fql('collect', 'cube-single-v0', '--val-episodes', 1, '--out', path)
    assert_one_line(done, 'must end in .npz')


def test_an_rlds_dataset_without_a_name(assert_one_line, fql):
    assert_one_line(fql('prepare', 'd', '--tfds', ''), '--tfds must name a dataset')


def test_truncated_source(assert_one_line, fql, maze_npz, tmp_path, environment):
    cut = tmp_path / 'cut.npz'
    cut.write_bytes(maze_npz.read_bytes()[:100_000])
    assert_one_line(
        fql('prepare', 'cut', '--source', cut, '--data-dir', tmp_path / 'data'), 'cut.npz'
    )
    assert not list((tmp_path / 'data').glob('*cut*'))


def test_dataset_of_another_environment(assert_one_line, fql, prepared, tmp_path):
    run = tmp_path / 'run'
    done = fql('train', '--task', CUBE_TASK, '--dataset', prepared, *SMALL, '--run-dir', run)
    assert_one_line(done, prepared, 'cube-single')
    assert not run.exists()


def test_batch_larger_than_the_data(assert_one_line, fql, prepared, tmp_path):
    run = tmp_path / 'run'
    done = fql(
        *('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', run, '--batch-size', 100_000)
    )
    assert_one_line(done, 'batch_size 100000')
    assert not run.exists()


def test_no_opengl(assert_one_line, fql, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'bogus')
    run = tmp_path / 'run'
    done = fql(
        *('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', run, '--eval-interval', 1)
    )
    assert_one_line(done, 'OpenGL', 'MUJOCO_GL')
    assert not run.exists()


def test_an_existing_run_is_not_overwritten(assert_one_line, fql, finished_run):
    before = (finished_run / 'config.json').read_text()
    done = fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', finished_run)
    assert_one_line(done, f'--resume {finished_run}')
    assert (finished_run / 'config.json').read_text() == before


@pytest.mark.parametrize('place', ['700', '700/deeper'])
def test_a_run_among_the_checkpoints_of_another_is_refused(
    assert_one_line, fql, finished_run, tmp_path, place
):
    """It would be taken for a checkpoint, and the other run could not be continued."""
    at = finished_run / 'checkpoints'
    for command in (
        ('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir'),
        ('train', '--task', QUICKSTART_TASK, *SMALL, '--resume', 'auto', '--run-dir'),
        ('pretrain', '--dataset', 'visual-pointmaze-quickstart-navigate-v0', '--run-dir'),
        ('export-policy', finished_run, '--out'),
    ):
        done = fql(*command, at / place)
        assert_one_line(done, f'{at} is for checkpoints alone; name another folder')
    assert not (at / '700').exists()


def test_a_folder_of_something_else_is_not_continued(assert_one_line, fql, tmp_path):
    (tmp_path / 'notes.txt').touch()
    done = fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', tmp_path)
    assert_one_line(done, f'{tmp_path} exists; choose another --run-dir')


def test_a_run_folder_whose_name_is_a_pattern(assert_one_line, fql, prepared, tmp_path):
    """Orbax would save there, and find nothing when it reads."""
    done = fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', tmp_path / '[a]')
    assert_one_line(done, "Orbax cannot read from a folder with '[' in its name")
    assert not (tmp_path / '[a]').exists()


def test_a_platform_that_jax_passes_over(assert_one_line, environment, prepared, tmp_path):
    """Without a GPU, JAX raises an AssertionError that has no text."""
    arguments = ('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', tmp_path / 'run')
    done = subprocess.run(
        [sys.executable, '-m', 'scripts.main', *map(str, arguments)],
        env={**environment, 'JAX_PLATFORMS': 'cuda', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        check=False,
    )
    assert_one_line(done, 'JAX_PLATFORMS')
    assert not (tmp_path / 'run').exists()


def test_a_dead_link_as_run_folder(assert_one_line, fql, prepared, tmp_path):
    (tmp_path / 'run').symlink_to(tmp_path / 'gone')
    done = fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', tmp_path / 'run')
    assert_one_line(done, f'{tmp_path}/run is a link to {tmp_path}/gone, which does not exist')


def test_resume_with_other_settings_names_them(assert_one_line, fql, finished_run):
    done = fql('train', '--resume', finished_run, '--batch-size', 16, '--alpha', 3)
    assert_one_line(done, 'batch_size: stored 8, asked 16', 'alpha: stored 0.5, asked 3')


def test_a_preset_is_of_new_runs_of_one_agent(assert_one_line, fql, finished_run, tmp_path):
    done = fql('train', '--resume', finished_run, '--preset', 'strong')
    assert_one_line(done, '--preset chooses the settings of a new run: leave it out')
    states = CUBE_TASK.removeprefix('visual-')
    done = fql('train', '--task', states, '--preset', 'strong', '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'preset strong is of agent qc_fql for tasks from states')


def test_resume_of_something_else(assert_one_line, fql, tmp_path):
    assert_one_line(fql('train', '--resume', tmp_path), 'is not a run folder')


def test_a_finished_run_can_be_extended(assert_one_line, run_fql, finished_run):
    done = run_fql('train', '--resume', finished_run, '--steps', 3)
    assert done.returncode == 0, done.stderr
    assert json.loads(run_fql('inspect', 'checkpoint', finished_run).stdout)['step'] == 3
    assert_one_line(run_fql('train', '--resume', finished_run, '--steps', 2), 'update 3 already')


def test_resume_on_other_data_is_refused(
    assert_one_line, fql, finished_run, maze_npz, prepared, tmp_path
):
    with np.load(maze_npz) as file:
        arrays = dict(file)
    arrays['actions'][0, 0] *= 0.5
    source, folder = tmp_path / 'other.npz', tmp_path / 'data'
    np.savez(source, **arrays)
    assert fql('prepare', prepared, '--source', source, '--data-dir', folder).returncode == 0
    done = fql('train', '--resume', finished_run, '--data-dir', folder)
    assert_one_line(done, 'was trained on other data than', str(folder / prepared))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--num-processes', 4, '--process-id', 1), 'need --coordinator'),
        (
            ('--coordinator', 'h:1', '--num-processes', 2, '--process-id', 2),
            'must lie in [0, 1], not 2',
        ),
        (('--coordinator', 'auto'), '--coordinator auto: '),
        (('--coordinator', 'junk'), '--coordinator must be HOST:PORT'),
        (('--coordinator', 'host:99999'), 'must be HOST:PORT'),
        (('--coordinator', 'x' * 5000), 'must be HOST:PORT'),
        (('--coordinator', 'no.such.host.invalid:4567'), 'no.such.host.invalid:4567: [Errno -'),
        # An address reserved for documentation: no machine has it.
        (('--coordinator', '192.0.2.1:4567'), 'Cannot assign requested address'),
        (('--hidden-dims', *[65_000] * 60), 'GB of memory'),
        (('--batch-size', 2**20), 'too few for batch_size'),
        (('--wandb-project', 'p'), "pip install 'fql-pixels[wandb]'"),
        (('--encoder.sharing', 'separate', '--no-bc-flow-trains-encoder'), 'shared encoder'),
    ],
)
def test_settings_that_make_no_sense(assert_one_line, fql, prepared, tmp_path, arguments, message):
    run = tmp_path / 'run'
    done = fql('train', '--task', QUICKSTART_TASK, *SMALL, '--run-dir', run, *arguments)
    assert_one_line(done, message)
    assert not run.exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--watch', '--seed', 7), 'only --episodes'),
        (('--watch', '--success-timing', 'pre'), 'only --episodes'),
        (('--policy', 'random', '--step', 2), 'leave out --step'),
        (('--policy', 'random', '--seed', -5), 'seed must lie in [0, 2147483647], not -5'),
        (('--episodes', 10**20), 'episodes must lie in [1, 1e+06]'),
        (('--workers', -1), 'workers must lie in'),
        (('--env-step-seconds', 'nan'), 'env-step-seconds must lie in'),
    ],
)
def test_what_an_evaluation_would_ignore_is_refused(
    assert_one_line, fql, finished_run, arguments, message
):
    assert_one_line(fql('evaluate', finished_run, *arguments), message)


def test_nobody_waits_for_checkpoints_that_never_come(assert_one_line, fql, prepared, tmp_path):
    run = tmp_path / 'run'
    settings = (*SMALL, '--save-interval', 0, '--run-dir', run)
    assert fql('train', '--task', QUICKSTART_TASK, *settings).returncode == 0
    assert_one_line(fql('evaluate', run, '--watch'), 'saves no checkpoints')


def test_a_configuration_that_lacks_a_field(assert_one_line, fql, finished_run, tmp_path):
    values = json.loads((finished_run / 'config.json').read_text())
    del values['observation_shape']
    (tmp_path / 'config.json').write_text(json.dumps(values))
    assert_one_line(fql('train', '--resume', tmp_path), 'no field observation_shape')


@pytest.mark.parametrize('command', ['evaluate', ('inspect', 'checkpoint')])
def test_commands_on_a_run_that_is_none(assert_one_line, fql, tmp_path, command):
    arguments = (command,) if isinstance(command, str) else command
    assert_one_line(fql(*arguments, tmp_path), 'is not a run folder')


def test_unknown_checkpoint(assert_one_line, fql, finished_run):
    done = fql('inspect', 'checkpoint', finished_run, '--step', 77)
    assert_one_line(done, 'no checkpoint of update 77', 'there are [')


def test_a_damaged_checkpoint_is_passed_over_and_named(fql, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / 'run')
    assert fql('train', '--resume', run, '--steps', 3).returncode == 0
    shutil.rmtree(run / 'checkpoints' / '3' / 'params')
    done = fql('inspect', 'checkpoint', run)
    assert json.loads(done.stdout)['step'] == 2
    assert done.stderr.startswith('checkpoint of update 3 is damaged (params/')


UNRAISABLE = """
import sys
from scripts import main

class Object:
    def __init__(self, fault):
        self.fault = fault
    def __del__(self):
        raise RuntimeError(self.fault)

main.run = lambda argv: [Object(fault) for fault in argv].clear()
main.main()
"""


def test_reads_that_orbax_gave_up_print_no_traceback(run_python):
    assert run_python(UNRAISABLE, 'Event loop is closed').stderr == ''
    assert 'RuntimeError: other' in run_python(UNRAISABLE, 'other').stderr


def test_nan_actions(assert_one_line, fql, maze_npz, tmp_path):
    with np.load(maze_npz) as file:
        arrays = dict(file)
    arrays['actions'][5, 1] = np.nan
    np.savez(tmp_path / 'nan.npz', **arrays)
    done = fql('prepare', 'nan', '--source', tmp_path / 'nan.npz', '--data-dir', tmp_path / 'data')
    assert_one_line(done, 'nan.npz', 'actions')


@pytest.mark.parametrize('command', ['train', 'pretrain'])
def test_a_state_that_needs_terabytes_is_refused_before_anything_is_written(
    assert_one_line, fql, prepared, tmp_path, command
):
    task = ('--task', QUICKSTART_TASK) if command == 'train' else ('--dataset', prepared)
    run = tmp_path / 'run'
    done = fql(command, *task, '--run-dir', run, '--hidden-dims', *[60_000] * 30)
    assert_one_line(done, 'GB of memory', 'choose a smaller --hidden-dims')
    # 29 kernels of 60,000 x 60,000 in float32, Adam's two moments of each, and gradients.
    (needed,) = re.findall(r'need ([\d,.]+) GB', done.stderr)
    assert float(needed.replace(',', '')) > 29 * 60_000**2 * 4 * 4 / 1e9
    assert not run.exists()


def test_a_benchmark_that_needs_terabytes_is_refused(assert_one_line, fql):
    arguments = ('update', '--hidden-dims', *[60_000] * 30)
    assert_one_line(fql('benchmark', *arguments), 'GB of memory')


def numbers_of(declared):
    """The names of all numeric fields of a dataclass, nested ones included."""
    for entry in dataclasses.fields(declared):
        kind = typing.get_type_hints(declared)[entry.name]
        if dataclasses.is_dataclass(kind):
            yield from numbers_of(kind)
        elif {int, float} & {kind, *typing.get_args(kind)}:
            yield entry.name


def test_every_number_that_a_user_may_give_has_bounds():
    declared = [*(cls for cls, _ in COMMANDS.values()), *AGENT_CONFIGS.values()]
    names = {name for cls in declared for name in numbers_of(cls)}
    assert {'lr', 'alpha', 'kills', 'mask_ratio', 'unfreeze_step', 'process_id'} <= names
    # This one may also be a word; `validate_config` checks it.
    assert names - {'offline_ratio'} <= BOUNDS_OF_ARGUMENTS.keys()


@pytest.mark.parametrize('kind', ['fifo', 'device'])
@pytest.mark.parametrize(
    'arguments',
    [
        ('prepare', 'd', '--source', 'ODD'),
        ('prepare', 'd', '--tfds', 'ODD'),
        ('prepare', 'd', '--data-dir', 'ODD'),
        ('evaluate', 'ODD'),
        ('report', 'runs/a', 'ODD'),
        ('train', '--task', QUICKSTART_TASK, '--run-dir', 'ODD'),
        ('train', '--task', QUICKSTART_TASK, '--encoder.from', 'ODD'),
        ('collect', 'pointmaze-medium-v0', '--out', 'ODD'),
    ],
)
def test_a_pipe_or_a_device_in_place_of_a_file(assert_one_line, fql, tmp_path, kind, arguments):
    odd = Path('/dev/zero')
    if kind == 'fifo':
        odd = tmp_path / 'odd'
        os.mkfifo(odd)
    done = fql(*(odd if argument == 'ODD' else argument for argument in arguments))
    assert_one_line(done, f'{odd} is a device, a pipe or a socket')


@pytest.mark.parametrize(
    'arguments',
    [
        ('data', '--rounds', 0),
        ('data', '--updates', 0),
        ('latents', '--rounds', 0),
        ('update', '--rounds', -1),
        ('train', '--updates', 0),
        ('faults', '--kills', 0),
    ],
)
def test_a_benchmark_of_nothing(assert_one_line, fql, arguments):
    assert_one_line(fql('benchmark', *arguments), 'must lie in [1, ')
