"""Published results against the averages that the paper prints in another table."""

import csv

import pytest

from fql.agents.configs import AGENT_CONFIGS
from fql.envs.tasks import find_task
from fql.reports.published import OFFLINE, ONLINE, published_result
from fql.sweeps.file import find_sweep, read_sweep

AGENTS = ('iql', 'rebrac', 'fawac', 'fbrac', 'ifql', 'fql')
AVERAGES = {  # Table 2: by category, of AGENTS.
    'antmaze-large-navigate': (53, 81, 6, 60, 28, 79),
    'antmaze-giant-navigate': (4, 26, 0, 4, 3, 9),
    'humanoidmaze-medium-navigate': (33, 22, 19, 38, 60, 58),
    'humanoidmaze-large-navigate': (2, 2, 0, 2, 11, 4),
    'antsoccer-arena-navigate': (8, 0, 12, 16, 33, 60),
    'cube-single-play': (83, 91, 81, 79, 79, 96),
    'cube-double-play': (7, 12, 5, 15, 14, 29),
    'scene-play': (28, 41, 30, 45, 30, 56),
    'puzzle-3x3-play': (9, 21, 6, 14, 19, 30),
    'puzzle-4x4-play': (7, 14, 1, 13, 25, 17),
    'antmaze': (57, 78, 44, 64, 65, 84),
    'adroit': (53, 59, 48, 50, 52, 52),
    'visual': (42, 60, None, 22, 50, 65),
}


def category(task):
    if task.startswith('visual-'):
        return 'visual'
    if task.startswith('antmaze-') and task.endswith('-v2'):
        return 'antmaze'
    return task.partition('-singletask')[0] if '-singletask' in task else 'adroit'


@pytest.mark.parametrize('name', AVERAGES)
def test_results_of_a_category_average_to_what_the_paper_says(name):
    """Up to the rounding of both."""
    sweeps = ('paper-states', 'paper-d4rl', 'paper-pixels')
    tasks = {run.config.task for sweep in sweeps for run in read_sweep(find_sweep(sweep))}
    members = [task for task in tasks if category(task) == name]
    assert len(members) == {'antmaze': 6, 'adroit': 12}.get(name, 5)
    for agent, average in zip(AGENTS, AVERAGES[name], strict=True):
        results = [published_result(agent, task, online=False) for task in members]
        if average is None:
            assert results == [None] * 5
        else:
            mean = sum(result.mean for result in results) / len(results)
            assert mean == pytest.approx(average, abs=1)


@pytest.mark.parametrize('path', [OFFLINE, ONLINE])
def test_all_names_are_known(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) - {'task'} <= set(AGENT_CONFIGS)
    tasks = [task for row in rows for task in row['task'].split()]
    assert len(tasks) == len(set(tasks))
    for task in tasks:
        find_task(task)


def test_online_results_are_those_of_the_online_sweep():
    for run in read_sweep(find_sweep('paper-online')):
        assert published_result('fql', run.config.task, online=True) is not None
    cube = 'cube-double-play-singletask-v0'
    assert str(published_result('fql', cube, online=True)) == '92 ± 3 %'
    # The environment without a number is that of its second task.
    assert str(published_result('fql', cube, online=False)) == '36 ± 6 %'


def test_a_score_has_no_unit_and_a_quoted_result_no_deviation():
    assert str(published_result('fql', 'pen-expert-v1', online=False)) == '142 ± 6'
    quoted = published_result('iql', 'antmaze-umaze-v2', online=False)
    assert (str(quoted), quoted.deviation) == ('77', None)
    assert 'Tarasov' in quoted.source
