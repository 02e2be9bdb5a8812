"""`fql compare` against successes written by hand."""

import matplotlib.image
import numpy as np


def write_run(path, successes):
    path.mkdir()
    rows = [f'{step},{success}' for step, success in successes.items()]
    (path / 'eval.csv').write_text('\n'.join(['step,evaluation/success', *rows, '']))
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
