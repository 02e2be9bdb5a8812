"""`fql compare` against successes written by hand."""

import matplotlib.image
import numpy as np

from fql.agents.configs import FQLConfig, IQLConfig
from fql.training.config import TrainConfig
from fql.training.run_folder import RunFolder, RunSpec, write_spec


def write_run(path, successes):
    path.mkdir()
    rows = [f'{step},{success},-1.5' for step, success in successes.items()]
    header = 'step,evaluation/success,evaluation/return'
    (path / 'eval.csv').write_text('\n'.join([header, *rows, '']))
    return path


def test_runs_of_one_name_are_one_group(fql, tmp_path):
    runs = [
        write_run(tmp_path / 'scratch-0', {10: 0.0, 20: 0.5}),
        write_run(tmp_path / 'scratch-1', {10: 0.2, 20: 0.7, 30: 1.0}),
        write_run(tmp_path / 'frozen', {10: 0.75}),
    ]
    out = tmp_path / 'curves.png'
    done = fql('compare', *runs, '--out', out)
    assert done.returncode == 0, done.stderr
    header, scratch, frozen, written = done.stdout.strip().splitlines()
    assert 'mean of all evaluations' in header
    assert ' '.join(scratch.split()) == 'scratch 2 20, 30 75.0% 50.0% to 100.0% 44.2%'
    assert ' '.join(frozen.split()) == 'frozen 1 10 75.0% 75.0% to 75.0% 75.0%'
    assert str(out) in written
    assert len(np.unique(matplotlib.image.imread(out))) > 10


def test_what_is_published_stands_beside_a_group_with_its_source(fql, tmp_path):
    task = 'visual-cube-single-play-singletask-task1-v0'
    runs = [write_run(tmp_path / name, {10: 0.5}) for name in ('fql-0', 'fql-1', 'iql', 'other')]
    for run, agent, name in (
        *((runs[0], FQLConfig(), task), (runs[1], FQLConfig(), task), (runs[2], IQLConfig(), task)),
        (runs[3], FQLConfig(), task.replace('task1', 'task2')),
    ):
        config = TrainConfig(task=name, agent=agent)
        write_spec(RunFolder(run), RunSpec(config, (64, 64, 9), 'uint8', 5))
    done = fql('compare', *runs, '--out', tmp_path / 'curves.png')
    assert done.returncode == 0, done.stderr
    header, *rows, source, _ = done.stdout.splitlines()
    assert header.split()[-1] == 'published'
    assert rows[0].endswith('81 ± 12 %')
    assert rows[1].endswith('70 ± 12 %')
    assert rows[2].endswith('50.0%')
    assert source.startswith('published: Park, Li, Levine 2025 (arXiv 2502.02538)')


def test_runs_of_different_measures_are_not_compared(fql, assert_one_line, tmp_path):
    run, scored = write_run(tmp_path / 'a', {10: 0.0}), tmp_path / 'b'
    scored.mkdir()
    columns = 'evaluation/success,evaluation/return,evaluation/score'
    (scored / 'eval.csv').write_text(f'step,{columns}\n10,0.5,9.0,80.0\n')
    done = fql('compare', run, scored, '--out', tmp_path / 'new.png')
    assert_one_line(done, 'measured by score and success')


def test_what_cannot_be_is_refused(fql, assert_one_line, tmp_path):
    assert_one_line(fql('compare', '--out', tmp_path / 'none.png'), 'name run folders')
    run = write_run(tmp_path / 'run', {10: 0.0})
    (tmp_path / 'there.png').touch()
    assert_one_line(fql('compare', run, '--out', tmp_path / 'there.png'), 'there.png exists')
    for name in ('there', 'there.foo'):
        done = fql('compare', run, '--out', tmp_path / name)
        assert_one_line(done, f'{name}: only .png pictures')
    assert (tmp_path / 'there.png').read_bytes() == b''
    assert_one_line(fql('compare', run, tmp_path, '--out', tmp_path / 'new.png'), 'no run folder')
    assert not (tmp_path / 'new.png').exists()
