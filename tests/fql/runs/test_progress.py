"""Progress bars."""

import time

from tqdm import tqdm

from fql.runs.progress import count_from, move_to, progress_bar


def test_what_it_took_to_begin_counts_neither_as_time_nor_as_work():
    with progress_bar('train', 'update', 100, initial=10) as bar:
        time.sleep(0.5)
        count_from(bar, 30)
        assert bar.format_dict['elapsed'] < 0.5
        assert (bar.format_dict['n'], bar.format_dict['initial']) == (30, 30)


def test_what_is_lost_counts_neither_for_the_rate_nor_for_the_time_left():
    with progress_bar('sweep', 'update', 100, initial=30) as bar:
        move_to(bar, 25)
        move_to(bar, 27)
        assert (bar.format_dict['n'], bar.format_dict['initial']) == (27, 25)


def test_a_line_written_at_once_leaves_no_bar(capsys):
    """A bar that is closed before its delay must not precede what is printed next."""
    with progress_bar('sweep', 'update', 4):
        tqdm.write('failed: seed-1')
    shown = capsys.readouterr()
    assert shown.out == 'failed: seed-1\n'
    assert not shown.err.strip()


def test_a_bar_that_has_not_moved_ends_its_line(capsys):
    with progress_bar('sweep', 'update', 4) as bar:
        time.sleep(2 * bar.delay)
        tqdm.write('failed: seed-1')
        bar.close()
    assert capsys.readouterr().err.endswith(']\n')
