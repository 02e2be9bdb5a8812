"""`fql sweep`: the runs that it starts and those that it keeps, and how it ends."""

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from data_pipeline.files import locked
from fql.envs.tasks import QUICKSTART_TASK
from fql.runs.run_folder import RunFolder
from fql.stopping import EXIT_CODE
from fql.sweeps.cluster import TrainJob
from fql.sweeps.file import read_sweep
from fql.sweeps.folder import (
    SweepFolder,
    claimed_log,
    is_done,
    is_running,
    sweep_table,
    train_command,
    updates_made,
)
from fql.sweeps.processes import gpu_variables

FILE = f"""
tasks = ["{QUICKSTART_TASK}"]
seeds = [0, 1]
[settings]
steps = STEPS
save-interval = 20
log-interval = 1
eval-interval = 0
batch-size = 8
hidden-dims = [8]
flow-steps = 1
"""
RUN = f'{QUICKSTART_TASK}/fql/seed-'


def write_file(folder, steps, seeds='[0, 1]'):
    path = folder / 'tiny.toml'
    path.write_text(FILE.replace('STEPS', str(steps)).replace('[0, 1]', seeds))
    return path


def finished(run_fql, folder, file):
    """Makes the runs of a sweep as its processes do."""
    for run in read_sweep(file):
        done = run_fql(*train_command(SweepFolder(folder), run, ''))
        assert done.returncode == 0, done.stderr
    return folder


def results(run_fql, folder):
    """All results of runs: their metrics, and a digest of their last state."""
    runs = [folder / f'{RUN}{seed}' for seed in (0, 1)]
    states = [json.loads(run_fql('inspect', 'checkpoint', run).stdout) for run in runs]
    return [
        ((run / 'train.csv').read_bytes(), state['step'], state['sha256'])
        for run, state in zip(runs, states, strict=True)
    ]


@pytest.fixture(scope='module')
def sweep(run_fql, prepared, tmp_path_factory):
    """A sweep's file and its folder, in which the only run is finished."""
    folder = tmp_path_factory.mktemp('sweep')
    file = write_file(folder, 2, '[0]')
    return file, finished(run_fql, folder / 'runs', file)


def test_a_finished_sweep_starts_nothing(fql, sweep):
    file, folder = sweep
    done = fql('sweep', file, '--dir', folder)
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()[:2]
    assert header.split()[0] == 'done'
    assert row.split()[:2] == [f'{QUICKSTART_TASK}/fql', '1']
    assert not list(folder.rglob('*.log'))
    assert (folder / 'sweep.toml').read_text() == file.read_text()


def test_tensorboard_names_its_runs(sweep):
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(sweep[1]))
    assert f'{RUN}0/tensorboard/train' in events.Runs()
    assert all(name.startswith(RUN) for name in events.Runs())


def test_runs_can_be_added_and_not_changed(fql, assert_one_line, sweep, tmp_path):
    file, folder = sweep
    fql('sweep', file, '--dir', folder)
    for old, new, what in (
        ('seeds = [0]', 'seeds = [1]', f'{RUN}0 is missing in'),
        ('batch-size = 8', 'batch-size = 9', f'{RUN}0 has other settings in'),
    ):
        other = tmp_path / 'other.toml'
        other.write_text(file.read_text().replace(old, new))
        assert_one_line(fql('sweep', other, '--dir', folder), 'is of another sweep', what)
    other.write_text(f'# More to come.\n{file.read_text()}')
    assert fql('sweep', other, '--dir', folder).returncode == 0
    assert (folder / 'sweep.toml').read_text().startswith('# More to come.')


def test_a_second_sweep_of_one_folder_changes_nothing(fql, assert_one_line, sweep, tmp_path):
    """Not even the record, which says what the first one runs. It shows the table."""
    file = write_file(tmp_path, 2, '[0, 1]')
    folder = tmp_path / 'runs'
    folder.mkdir()
    with locked(folder / 'sweep.lock', 'runs it'):
        done = fql('sweep', file, '--dir', folder)
        assert_one_line(done, 'another process runs the sweep')
        assert done.stdout.split()[:2] == ['not', 'begun']
    assert not (folder / 'sweep.toml').exists()


def test_damage_of_one_run_stops_no_other(fql, sweep, tmp_path):
    """Seed 0 is finished, but its evaluations are damaged; seed 1 cannot have its log."""
    file, folder = write_file(tmp_path, 2, '[0, 1]'), tmp_path / 'runs'
    shutil.copytree(sweep[1], folder)
    (folder / f'{RUN}0' / 'eval.csv').write_text('step,evaluation/success\n1\n2,0.5\n')
    os.mkfifo(folder / f'{RUN}1.log')
    done = fql('sweep', file, '--dir', folder)
    assert done.returncode == 1
    assert '1 damaged' in done.stdout.splitlines()[1]
    assert f'failed: {RUN}1: cannot be started: {folder / RUN}1.log is not a file' in done.stdout
    assert done.stderr.splitlines()[-1] == (
        'fql: 1 of 2 runs failed; run the same command to try them again'
    )


def test_different_measures_are_not_averaged(tmp_path):
    folder = SweepFolder(tmp_path)
    runs = read_sweep(write_file(tmp_path, 2, '[0, 1, 2]'))
    for run, success in zip(runs, (1.0, 'nan', 0.5), strict=True):
        path = folder.run(run).eval_csv
        path.parent.mkdir(parents=True)
        path.write_text(f'step,evaluation/success,evaluation/return\n1,{success},-15\n')
    table = sweep_table(folder, runs, dict.fromkeys((run.name for run in runs), 'done'))
    assert table.splitlines()[1].endswith('success 75.0% of 2, return -15.0 of 1')


def test_commands_are_listed_before_anything_is_there(fql, tmp_path):
    done = fql('sweep', 'paper-pixels', '--dir', tmp_path / 'runs', '--dry-run')
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    run = f'{tmp_path}/runs/visual-scene-play-singletask-task1-v0/fql/seed-1'
    assert 'fql train --task visual-scene-play-singletask-task1-v0 --agent fql' in lines[7]
    assert lines[7].endswith(f'--seed 1 --run-dir {run} --resume auto')
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures('prepared')
def test_a_fault_is_reported_before_anything_starts(fql, assert_one_line, tmp_path):
    arguments = ('--dir', tmp_path / 'runs')
    assert_one_line(fql('sweep', 'no.toml', *arguments), 'no.toml is neither a file')
    file = write_file(tmp_path, '"two"')
    assert_one_line(fql('sweep', file, *arguments), 'tiny.toml', "steps must be int, not 'two'")
    write_file(tmp_path, 2)
    done = fql('sweep', file, *arguments, '--data-dir', tmp_path / 'empty')
    assert_one_line(done, 'no dataset visual-pointmaze-quickstart-navigate-v0')
    assert_one_line(fql('sweep', file, *arguments, '--cluster-options', 'a=1'), 'needs --cluster')
    assert not (tmp_path / 'runs').exists()


def test_processes_take_turns_on_gpus_and_share_their_memory():
    seen = [gpu_variables(slot, 3, [4, 7]) for slot in range(3)]
    assert [variables['CUDA_VISIBLE_DEVICES'] for variables in seen] == ['4', '7', '4']
    assert {variables['XLA_PYTHON_CLIENT_MEM_FRACTION'] for variables in seen} == {'0.450'}
    assert gpu_variables(0, 3, []) == {}


def wait_until(holds, process=None):
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def pid_of(run: Path):
    """The process that trains a run, according to its lock."""
    text = (run / 'trainer.lock').read_text()
    return int(text.split()[1]) if text.startswith('process ') else 0


@pytest.mark.long
@pytest.mark.usefixtures('prepared')
def test_a_killed_sweep_ends_as_one_left_alone(start_fql, fql_process, run_fql, tmp_path):
    """Its runs outlive it; one of them is killed too. The same command completes all of them."""
    file = write_file(tmp_path, 400)
    folder = tmp_path / 'runs'
    command = ('sweep', file, '--dir', folder, '--jobs', 2)
    process = start_fql(*command)
    for seed in (0, 1):
        wait_until((folder / f'{RUN}{seed}' / 'checkpoints' / '20').exists, process)
    process.kill()
    process.wait()
    os.kill(pid_of(folder / f'{RUN}0'), signal.SIGKILL)
    second = read_sweep(file)[1]
    assert is_running(SweepFolder(folder), second)
    done = fql_process(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'running already: {RUN}1' in done.stdout
    assert f'started: {RUN}0' in done.stdout
    undisturbed = finished(run_fql, tmp_path / 'undisturbed', file)
    assert results(run_fql, folder) == results(run_fql, undisturbed)
    assert [row[1] for row in results(run_fql, folder)] == [400, 400]


@pytest.mark.long
@pytest.mark.usefixtures('prepared')
def test_ctrl_c_stops_all_in_good_order(start_fql, fql_process, tmp_path):
    """A run that fails stops no other one, and is reported with its last line."""
    file = write_file(tmp_path, 10_000_000)
    folder = tmp_path / 'runs'
    broken = folder / f'{RUN}0'
    broken.mkdir(parents=True)
    (broken / 'mine.txt').write_text('mine')
    process = start_fql('sweep', file, '--dir', folder, '--jobs', 1)
    wait_until((folder / f'{RUN}1' / 'checkpoints' / '20').exists, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, output
    assert f'stopped: {RUN}1' in output
    assert f'failed: {RUN}0: fql: {broken} is not a run folder' in output
    table = output[output.rindex('stopped  failed') :].splitlines()
    assert table[1].split()[:3] == [f'{QUICKSTART_TASK}/fql', '1', '1']
    assert not any(is_running(SweepFolder(folder), run) for run in read_sweep(file))
    assert 'is saved' in (folder / f'{RUN}1.log').read_text()
    assert (broken / 'mine.txt').read_text() == 'mine'


@pytest.mark.usefixtures('prepared')
def test_a_trial_of_a_cluster_begins_no_more_runs_than_asked(fql, assert_one_line, tmp_path):
    file = write_file(tmp_path, 2, '[0, 1]')
    done = fql('sweep', file, '--dir', tmp_path / 'runs', '--cluster', 'local')
    assert_one_line(done, '--cluster local begins all 2 runs at once: give --jobs 2')
    assert not (tmp_path / 'runs' / 'cluster').exists()


@pytest.mark.parametrize(('seconds', 'is_free'), [(0.3, True), (30, False)])
def test_a_look_at_a_log_does_not_keep_its_run_from_starting(tmp_path, seconds, is_free):
    log = tmp_path / 'run.log'
    log.touch()
    with log.open('rb') as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(seconds, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with claimed_log(log) as claimed:
            assert (claimed is not None) == is_free
        timer.cancel()
        timer.join()


def test_a_log_where_no_locks_are_is_named(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with pytest.raises(OSError, match=r'has no locks .*/run\.log'):
        claimed_log(tmp_path / 'run.log').__enter__()


@pytest.mark.parametrize(
    ('content', 'made'),
    [
        (b'', 0),
        (b'step,loss\n', 0),
        (b'step,loss\n10,0.5\n', 10),
        (b'step,loss\n10,0.5\n20,0.', 10),
        (b'step,loss\n10,0.5\n' + bytes(30) + b'\n', 10),
        (b'step,loss\n' + b''.join(b'%d,0.123456789\n' % n for n in range(1, 50_001)), 50_000),
    ],
)
def test_progress_is_that_of_the_last_whole_row(tmp_path, content, made):
    (tmp_path / 'train.csv').write_bytes(content)
    assert updates_made(RunFolder(tmp_path)) == made


@pytest.mark.long
@pytest.mark.usefixtures('prepared')
def test_a_cluster_runs_what_is_missing(fql_process, tmp_path):
    """In other processes: where submitit is imported, its log keeps the captured stderr."""
    pytest.importorskip('submitit', reason="needs the extra 'slurm'")
    file = write_file(tmp_path, 2, '[0]')
    folder, (run,) = SweepFolder(tmp_path / 'runs'), read_sweep(file)
    command = ('sweep', file, '--dir', folder.path, '--cluster', 'local')
    done = fql_process(*command)
    assert done.returncode == 0, done.stderr
    assert 'submitted jobs: 1' in done.stdout
    wait_until(lambda: is_done(folder.run(run), run) and not is_running(folder, run))
    again = fql_process(*command)
    assert again.returncode == 0, again.stderr
    assert 'submitted' not in again.stdout
    assert again.stdout.split()[0] == 'done'


@pytest.mark.long
@pytest.mark.usefixtures('prepared')
def test_a_job_saves_before_it_is_queued_again(environment, monkeypatch, tmp_path):
    """Calls what submitit calls before a preemption, and at the end of a job's time."""
    pytest.importorskip('submitit', reason="needs the extra 'slurm'")
    monkeypatch.setenv('FQL_DATA_DIR', environment['FQL_DATA_DIR'])
    folder, run = SweepFolder(tmp_path / 'runs'), read_sweep(write_file(tmp_path, 10_000_000))[0]
    arguments, log = train_command(folder, run, ''), folder.log(run)
    job = pickle.loads(pickle.dumps(TrainJob(arguments, str(log))))
    ended = []

    def work():
        try:
            job()
        except RuntimeError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until((folder.run(run).checkpoints / '20').exists)
    again = job.checkpoint()
    thread.join(timeout=60)
    assert ended == [f'exit code {EXIT_CODE}; see {log}']
    assert (again.function.arguments, again.function.log) == (tuple(arguments), str(log))
    assert re.search(r'stopped; update [\d,]+ is saved', log.read_text())
