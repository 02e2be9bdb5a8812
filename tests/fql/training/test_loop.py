"""What is due after an update, and how many rows of metrics a run has by then."""

from types import SimpleNamespace

import pytest

from fql.training.loop import due_after, rows_logged


@pytest.mark.parametrize('interval', [0, 1, 3, 5, 10, 100])
def test_the_rows_of_the_first_updates_are_counted_as_they_are_written(interval):
    schedule = SimpleNamespace(steps=10, log_interval=interval, eval_interval=0, save_interval=0)
    written = 0
    for step in range(schedule.steps):
        written += due_after(schedule, step, step + 1).log
        assert rows_logged(schedule, step + 1) == written
