"""`fql quickstart` with a data folder that is not empty."""

import numpy as np

from fql.settings.presets import quickstart_config
from fql.training.quickstart import prepare_data


def test_a_store_of_other_data_says_which_command_replaces_it(
    fql, assert_one_line, maze_npz, tmp_path
):
    name = quickstart_config().dataset
    data = ('--data-dir', tmp_path)
    assert fql('prepare', name, '--source', maze_npz, *data).returncode == 0
    with np.load(maze_npz) as file:
        arrays = dict(file)
    arrays['qvel'] += 1
    (tmp_path / 'collected').mkdir()
    np.savez(tmp_path / 'collected' / f'{name}.npz', **arrays)
    done = fql('quickstart', *data, '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'made from other source files', 'fql prepare')
    command = done.stderr.strip().partition(': fql ')[2].split()
    assert fql(*command).returncode == 0
    prepare_data(name, tmp_path)


def test_damaged_data_are_to_be_deleted(fql, assert_one_line, tmp_path):
    (tmp_path / 'collected').mkdir()
    (tmp_path / 'collected' / f'{quickstart_config().dataset}.npz').write_bytes(b'no zip')
    done = fql('quickstart', '--data-dir', tmp_path, '--run-dir', tmp_path / 'run')
    assert_one_line(done, 'delete it, then run the command again')


def test_a_run_folder_in_use_is_reported_before_data_are_collected(fql, assert_one_line, tmp_path):
    run, data = tmp_path / 'run', tmp_path / 'data'
    run.write_text('mine')
    assert_one_line(fql('quickstart', '--data-dir', data, '--run-dir', run), f'{run} exists')
    assert not data.exists()
