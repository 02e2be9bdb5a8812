"""`fql tasks` against the published numbers, and its light imports."""

import re


def rows(done):
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ['task', 'dataset', 'observations', 'agent', 'settings', 'source']
    return [re.split(r'\s{2,}', line) for line in lines]


def test_a_task_has_a_line_for_each_agent_it_was_tuned_for(fql):
    task = 'visual-cube-single-play-singletask-task1-v0'
    head, source = [task, 'visual-cube-single-play-v0', 'images'], 'FQL README (719d044)'
    assert rows(fql('tasks', task)) == [
        [*head, 'fql', 'alpha 300, discount 0.99, q-agg mean', source],
        [*head, 'iql', 'alpha 1, discount 0.99', source],
        [*head, 'rebrac', 'alpha-actor 1, alpha-critic 0, discount 0.99', source],
        [*head, 'ifql', 'num-samples 32, discount 0.99', source],
        [
            *(*head, 'fbrac', 'alpha 100, discount 0.99, q-agg mean'),
            'FQL paper (arXiv 2502.02538), Table 6',
        ],
    ]


def test_the_online_settings_stand_beside_the_others(fql):
    (row,) = rows(fql('tasks', 'antsoccer-arena-navigate-singletask-v0'))
    assert row[3:5] == [
        'fql',
        'alpha 10, discount 0.995, q-agg mean; online: alpha 30, discount 0.995, q-agg mean',
    ]
    row, _ = rows(fql('tasks', 'humanoidmaze-medium-navigate-singletask-v0', '--agent', 'sac'))
    assert row[4] == 'online: discount 0.995, q-agg min'
    (row,) = rows(fql('tasks', 'antmaze-large-play-v2'))
    assert row[1:5] == [
        'antmaze-large-play-v2',
        'states',
        'fql',
        'alpha 3, discount 0.99, q-agg mean',
    ]


def test_patterns(fql, assert_one_line):
    assert len(rows(fql('tasks', 'cube-octuple-*-task3-v0'))) == 2
    found = rows(fql('tasks', 'visual-*-task1-v0', '--agent', 'iql'))
    tuned = [row for row in found if row[-1] != 'not tuned']
    assert len(tuned) == 7
    assert all(row[3] == 'iql' for row in found)
    assert_one_line(fql('tasks', 'visual-cubicle'), "no task matches 'visual-cubicle'")
    assert_one_line(fql('tasks', '--agent', 'xql'), "unknown agent 'xql'")


def test_all_are_listed_without_anything_heavy(run_python):
    done = run_python(
        'import sys\n'
        'from scripts.main import run\n'
        'assert run(["tasks"]) == 0\n'
        'heavy = {"jax", "tensorflow", "mujoco", "matplotlib", "orbax"} & set(sys.modules)\n'
        'assert not heavy, heavy\n'
    )
    assert done.returncode == 0, done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert len(names) == 646
    assert sum(line.rstrip().endswith('not tuned') for line in done.stdout.splitlines()) > 400
