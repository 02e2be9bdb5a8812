"""The metrics files of a run that is killed and resumed."""

import math
import socket

import pytest

from fql.errors import FQLError
from fql.runs.measures import SUCCESS, read_results
from fql.runs.metrics_log import MetricsLog, read_csv


def open_log(folder, step, **settings):
    folder.mkdir(exist_ok=True)
    return MetricsLog(folder / 'train.csv', folder / 'tensorboard', step, **settings)


def write_rows(folder, start, steps):
    with open_log(folder, start) as log:
        for step in steps:
            log.write(step, {'critic/loss': 0.1 * step, 'actor/loss': 1 / 3})


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    for folder in (whole, resumed):
        folder.mkdir()
    write_rows(whole, 0, [1, 2, 3, 4])
    write_rows(resumed, 0, [1, 2, 3])
    with (resumed / 'train.csv').open('a') as file:
        file.write('4,0.4')  # Killed in the middle of a line.
    write_rows(resumed, 2, [3, 4])
    assert (resumed / 'train.csv').read_text() == (whole / 'train.csv').read_text()
    assert len(list((resumed / 'tensorboard').iterdir())) == 1


def test_files_of_others_among_the_event_files_stay(tmp_path):
    """For instance where the folder is a link."""
    write_rows(tmp_path, 0, [1])
    (tmp_path / 'tensorboard' / 'mine.txt').write_text('mine')
    write_rows(tmp_path, 1, [2])
    names = sorted(path.name.partition('.')[0] for path in (tmp_path / 'tensorboard').iterdir())
    assert names == ['events', 'mine']


def test_a_log_without_step_keeps_all_rows(tmp_path):
    write_rows(tmp_path, 0, [1, 2])
    write_rows(tmp_path, None, [3])
    assert [row['step'] for row in read_csv(tmp_path / 'train.csv')] == ['1', '2', '3']


@pytest.mark.parametrize(
    ('end', 'steps'),
    [
        (b'4,0.4', ['1', '2', '3']),
        (b'4,0.4\n', ['1', '2', '3']),
        (b'4,0.4,0.', ['1', '2', '3']),  # Cut where it still looks like a row.
        (bytes(4096), ['1', '2', '3']),  # A power failure before the system wrote the rows.
        (bytes(10) + b'\n', ['1', '2', '3']),
        (b'4,0.4,0.1\n5,0.' + bytes(100) + b'\n7,0.7,0.1\n', ['1', '2', '3', '4']),
        (b'\xff\xfe\n', ['1', '2', '3']),
        (b'', ['1', '2', '3']),
    ],
)
def test_a_damaged_end_is_cut_off(tmp_path, end, steps):
    write_rows(tmp_path, 0, [1, 2, 3])
    path = tmp_path / 'train.csv'
    path.write_bytes(path.read_bytes() + end)
    assert [row['step'] for row in read_csv(path)] == steps
    write_rows(tmp_path, 2, [3])
    write_rows(tmp_path / 'whole', 0, [1, 2, 3])
    assert path.read_bytes() == (tmp_path / 'whole' / 'train.csv').read_bytes()


@pytest.mark.parametrize('names', [('critic/loss',), ('actor/loss', 'critic/loss'), ('a', 'b')])
def test_rows_of_other_columns_are_not_written_behind_these(tmp_path, names):
    write_rows(tmp_path, 0, [1])
    before = (tmp_path / 'train.csv').read_bytes()
    with open_log(tmp_path, 1) as log, pytest.raises(FQLError, match=r'train\.csv has other col'):
        log.write(2, dict.fromkeys(names, 0.5))
    assert (tmp_path / 'train.csv').read_bytes() == before


@pytest.mark.parametrize('content', [b'', bytes(100), b'step,cri', b'step,critic/loss\n', b'\n'])
def test_a_file_without_a_whole_row_has_none(tmp_path, content):
    path = tmp_path / 'train.csv'
    path.write_bytes(content)
    assert read_csv(path) == []


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('step,', 'stop,', 'first line'),
        ('critic/loss', 'actor/loss', 'first line'),
        ('critic/loss,', '', 'line 2'),
        ('\n2,', '\n2.5,', 'line 3'),
        ('\n2,', '\n-2,', 'line 3'),
        ('\n2,', '\n,', 'line 3'),
        ('\n2,', '\n2', 'line 3'),
        ('\n2,', '\n2,1,', 'line 3'),
        ('\n2,', '\n2,x', 'line 3'),
        ('\n2,', '\n2,\n', 'line 3'),
    ],
)
def test_damage_before_the_end_is_refused_in_one_line(tmp_path, old, new, message):
    write_rows(tmp_path, 0, [1, 2, 3])
    path = tmp_path / 'train.csv'
    path.write_text(path.read_text().replace(old, new, 1))
    before = path.read_bytes()
    with pytest.raises(FQLError, match=f'^[^\n]*train.csv: [^\n]*{message}[^\n]*$'):
        open_log(tmp_path, 3)
    assert path.read_bytes() == before


def test_evaluations_without_success_are_refused(tmp_path):
    write_rows(tmp_path, 0, [1])
    with pytest.raises(FQLError, match=r'train\.csv has no column evaluation/success'):
        read_results(tmp_path / 'train.csv')


@pytest.mark.parametrize('value', ['1.5', '-0.1', 'inf'])
def test_a_success_that_cannot_be_is_refused(tmp_path, value):
    (tmp_path / 'eval.csv').write_text(f'step,evaluation/success\n5,nan\n10,{value}\n')
    with pytest.raises(FQLError, match=rf'eval\.csv: the success of update 10 is {value}'):
        read_results(tmp_path / 'eval.csv')


def test_new_rows_are_mirrored(tmp_path):
    write_rows(tmp_path, 0, [1])
    mirrored = []
    with open_log(tmp_path, 1, mirror=lambda *row: mirrored.append(row)) as log:
        log.write(2, {'critic/loss': 3.0, 'actor/loss': 4.0})
    assert mirrored == [(2, {'critic/loss': 3.0, 'actor/loss': 4.0})]


def test_values_are_exact_and_nan_survives(tmp_path):
    with open_log(tmp_path, 0) as log:
        log.write(7, {'evaluation/success': math.nan, 'evaluation/return': 0.1 + 0.2})
    with open_log(tmp_path, 7):
        pass
    (row,) = read_csv(tmp_path / 'train.csv')
    assert float(row['evaluation/return']) == 0.1 + 0.2
    assert math.isnan(float(row['evaluation/success']))


def test_event_files_name_neither_the_machine_nor_a_folder(tmp_path):
    write_rows(tmp_path, 0, [1, 2])
    (path,) = (tmp_path / 'tensorboard').iterdir()
    for text in (socket.gethostname(), str(tmp_path)):
        assert text not in path.name
        assert text.encode() not in path.read_bytes()


def scalars_of(folder):
    """The values in event files, by name and step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (folder / 'tensorboard').iterdir()
    return {
        (value.tag, event.step): value.tensor.float_val[0]
        if value.HasField('tensor')
        else value.simple_value
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    }


def test_event_files_hold_the_same_scalars(tmp_path):
    write_rows(tmp_path, 0, [1, 2])
    scalars = scalars_of(tmp_path)
    assert abs(scalars[('actor/loss', 1)] - 1 / 3) < 1e-6
    assert abs(scalars[('critic/loss', 2)] - 0.2) < 1e-6


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_event_files_hold_no_value_that_is_not_finite(tmp_path, caplog, value):
    """Of which tensorboardX would warn, also when a resumed run writes them again."""
    with open_log(tmp_path, 0) as log:
        log.write(1, {'evaluation/success': value, 'evaluation/return': 2.0})
    with open_log(tmp_path, 1):
        pass
    assert scalars_of(tmp_path) == {('evaluation/return', 1): 2.0}
    assert not caplog.records
    assert read_csv(tmp_path / 'train.csv')[0]['evaluation/success'] == repr(value)


def test_rows_that_a_checkpoint_counts_and_are_gone_are_named(tmp_path, capsys):
    write_rows(tmp_path, 0, [1, 2, 3])
    for written, line in ((3, ''), (5, 'train.csv has 3 of the 5 rows that were written up to')):
        with open_log(tmp_path, 3, written=written) as log:
            assert log.rows == {'train.csv': 3}
            assert line in capsys.readouterr().out
            assert bool(line) == (written > 3)
            log.write(4, {'critic/loss': 3.0, 'actor/loss': 4.0})
            assert log.rows == {'train.csv': 4}


def test_an_evaluation_without_a_success_beside_others_with_one_has_none(tmp_path):
    rows = 'step,evaluation/success,evaluation/return\n2,nan,-9\n4,0.5,-3\n6,nan,-8\n'
    (tmp_path / 'eval.csv').write_text(rows)
    assert read_results(tmp_path / 'eval.csv') == (SUCCESS, {2: 0.0, 4: 0.5, 6: 0.0})
