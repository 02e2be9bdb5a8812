"""Run folders that were damaged, mixed up or edited: a one-line error of every reader."""

import json
import shutil

import pytest

from fql.envs.tasks import QUICKSTART_TASK

SMALL = (
    *('--task', QUICKSTART_TASK, '--batch-size', 8, '--hidden-dims', 8, '--flow-steps', 1),
    *('--encoder', 'impala_debug', '--eval-interval', 0, '--log-interval', 1),
    *('--save-interval', 2, '--steps', 4),
)


@pytest.fixture(scope='module')
def runs(run_fql, prepared, tmp_path_factory):
    """Two runs that differ only in the seed."""
    folders = [tmp_path_factory.mktemp('runs') / 'run' for _ in range(2)]
    for seed, folder in enumerate(folders):
        done = run_fql('train', *SMALL, '--seed', seed, '--run-dir', folder)
        assert done.returncode == 0, done.stderr
    return folders


@pytest.fixture
def run(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / 'run')


@pytest.fixture
def assert_all_refuse(fql, assert_one_line, tmp_path):
    """assert_all_refuse(run, text, ...): every command that reads a checkpoint reports these."""

    def check(run, *texts):
        rows = (run / 'train.csv').read_bytes()
        for command in (
            ('train', '--steps', 8, '--resume', run),
            ('train', *SMALL, '--steps', 8, '--resume', 'auto', '--run-dir', run),
            ('inspect', 'checkpoint', run),
            ('evaluate', run),
            ('export-encoder', run, '--out', tmp_path / 'encoder'),
        ):
            assert_one_line(fql(*command), *texts)
        assert (run / 'train.csv').read_bytes() == rows
        assert not (tmp_path / 'encoder').exists()

    return check


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_checkpoint_of_another_run_is_refused(runs, run, assert_all_refuse):
    shutil.rmtree(run / 'checkpoints' / '4')
    shutil.copytree(runs[1] / 'checkpoints' / '4', run / 'checkpoints' / '4')
    assert_all_refuse(run, 'checkpoints/4 is a checkpoint of another run')


def test_a_copy_under_another_number_is_refused(run, assert_all_refuse):
    shutil.copytree(run / 'checkpoints' / '2', run / 'checkpoints' / '6')
    assert_all_refuse(run, 'checkpoints/6 holds the checkpoint of update 2')


@pytest.mark.parametrize(
    ('name', 'value'), [('q_agg', 'min'), ('discount', 0.5), ('alpha', 1), ('lr', 1e-3)]
)
def test_an_edited_setting_is_named(run, fql, assert_one_line, name, value):
    edit(run / 'config.json', lambda values: values['config']['agent'].update({name: value}))
    for command in (('train', '--resume'), ('inspect', 'checkpoint'), ('evaluate',)):
        assert_one_line(fql(*command, run), f'config.agent.{name} is {value!r}, was ')


@pytest.mark.long
def test_settings_that_a_resume_may_change_can_be_edited(run, fql):
    edit(run / 'config.json', lambda values: values['config'].update(steps=5, keep_latest=1))
    done = fql('train', '--resume', run)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (run / 'checkpoints').iterdir()] == ['5']
    assert fql('train', '--resume', run, '--steps', 6, '--keep-latest', 4).returncode == 0


def test_a_run_without_its_checkpoints_is_never_begun_again(run, fql, assert_one_line):
    rows = (run / 'train.csv').read_bytes()
    for remove in (
        lambda: [shutil.rmtree(path) for path in (run / 'checkpoints').iterdir()],
        lambda: (run / 'checkpoints').rmdir(),
    ):
        remove()
        for arguments in (('--resume', run), (*SMALL, '--resume', 'auto', '--run-dir', run)):
            assert_one_line(fql('train', *arguments), 'metrics up to update 4', 'no checkpoint in')
        assert (run / 'train.csv').read_bytes() == rows
    assert_one_line(fql('inspect', 'checkpoint', run), 'no checkpoints in')


def test_data_that_are_not_named_any_longer(run, fql, assert_one_line):
    (run / 'data.json').unlink()
    assert_one_line(fql('train', '--resume', run), 'has no data.json')


DAMAGES = {
    'empty': lambda content: b'',
    'zeros': lambda content: bytes(len(content)),
    'cut short': lambda content: content[: len(content) // 2],
    'zeros at the end': lambda content: content[:-20] + bytes(20),
    'no UTF-8': lambda content: b'\xff' + content,
    'a list': lambda content: b'[]',
    'null': lambda content: b'null',
    'a number': lambda content: b'1' * 5000,
    'nested': lambda content: b'{"a":' * 100_000,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_configuration_is_reported_in_one_line(run, fql, assert_one_line, damage):
    path = run / 'config.json'
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    for command in (('train', '--resume'), ('inspect', 'checkpoint'), ('evaluate',)):
        assert_one_line(fql(*command, run), str(path))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        *(('config', value) for value in (None, [], 'x', {})),
        *(('observation_shape', value) for value in (None, 7, ['a'], [1.5], {})),
        *(('observation_dtype', value) for value in (None, 'int8', 1)),
        *(('action_dim', value) for value in (None, 2.0, '2', True)),
        *(('run_id', value) for value in (None, 1, '')),
        *(('versions', value) for value in (None, {'a': 1})),
        ('format_version', 'x'),
        ('other', 1),
    ],
)
def test_a_field_of_another_type_is_named(run, fql, assert_one_line, name, value):
    path = run / 'config.json'
    edit(path, lambda values: values.update({name: value}))
    fault = name.replace('format_', 'format ').replace('run_id', 'run')
    for command in (('train', '--resume'), ('inspect', 'checkpoint')):
        assert_one_line(fql(*command, run), str(path.parent), fault)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_checksums_of_the_data_are_reported_in_one_line(run, fql, assert_one_line, damage):
    path = run / 'data.json'
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert_one_line(fql('train', '--resume', run), str(path))


@pytest.mark.parametrize('name', ['train.csv', 'eval.csv'])
def test_a_damaged_row_is_reported_in_one_line(run, fql, assert_one_line, name):
    rows = (run / 'train.csv').read_text().splitlines()
    (run / name).write_text('\n'.join([*rows[:2], f'x{rows[2]}', *rows[3:], '']))
    assert_one_line(fql('train', '--resume', run, '--steps', 5), f'{name}: line 3 is damaged')


def test_a_power_failure_in_the_metrics_costs_no_more_than_them(runs, run, fql):
    path = run / 'train.csv'
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    done = fql('train', '--resume', run)
    assert done.returncode == 0, done.stderr
    assert 'train.csv was damaged at its end, which is cut; its last step is 3' in done.stdout
    assert path.read_text() == ''.join(
        (runs[0] / 'train.csv').read_text().splitlines(keepends=True)[:-1]
    )


def test_rows_of_metrics_that_are_gone_are_named(fql, run):
    """The run continues without them."""
    path = run / 'train.csv'
    header, _, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(''.join([header, *rows]))
    (run / 'timing.csv').unlink()
    done = fql('train', '--steps', 6, '--resume', run)
    assert done.returncode == 0, done.stderr
    lost = [line.partition(' has ')[2] for line in done.stdout.splitlines() if 'are lost' in line]
    assert [line.partition(' that')[0] for line in lost] == ['3 of the 4 rows', '0 of the 3 rows']
    done = fql('train', '--steps', 7, '--resume', run)
    assert 'are lost' not in done.stdout
