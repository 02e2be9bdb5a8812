"""The runs that a sweep's file describes, and the errors of a wrong file."""

import re
from pathlib import Path

import pytest
import tyro

from fql.errors import FQLError
from fql.sweeps.file import find_sweep, read_sweep, ready_sweeps
from scripts.train_args import Train

CUBES = 'cube-double-play-singletask-task{}-v0'
FILE = """
tasks = ["cube-double-play-singletask-task[12]-v0", "antmaze-umaze-v2"]
agents = ["fql", "qc_fql"]
seeds = [3, 5]

[settings]
batch-size = 8
online-steps = 9
online.alpha = 7
discount = 0.5

[task-settings."cube-*"]
alpha = 2
discount = 0.9

[agent-settings.qc_fql]
horizon = 4
hidden-dims = [16, 8]

[variants.one]

[variants.apart]
"encoder.sharing" = "separate"
critic-layer-norm = false
alpha = 3.5
"""


def runs_of(tmp_path, text):
    path = tmp_path / 'sweep.toml'
    path.write_text(text)
    return read_sweep(path)


def test_runs_are_all_combinations_with_the_settings_of_each(tmp_path):
    runs = {run.name: run.config for run in runs_of(tmp_path, FILE)}
    assert len(runs) == 3 * 2 * 2 * 2
    assert list(runs)[:2] == [f'{CUBES.format(1)}/fql/{name}/seed-3' for name in ('one', 'apart')]
    config = runs[f'{CUBES.format(2)}/qc_fql/apart/seed-5']
    agent = config.agent
    assert (config.seed, config.batch_size, config.task) == (5, 8, CUBES.format(2))
    assert (agent.name, agent.horizon, agent.hidden_dims) == ('qc_fql', 4, (16, 8))
    assert (agent.encoder.sharing, agent.critic_layer_norm) == ('separate', False)
    # The more specific table takes precedence; the online alpha is another setting.
    assert (agent.alpha, agent.discount, config.online.alpha) == (3.5, 0.9, 7.0)
    config = runs['antmaze-umaze-v2/fql/one/seed-3']
    assert (config.agent.alpha, config.agent.discount) == (10, 0.5)
    assert config.agent.encoder.sharing == 'shared'


@pytest.mark.parametrize('name', [*ready_sweeps(), 'the one above'])
def test_a_command_says_what_the_file_does(tmp_path, name):
    """`fql train` reads the same settings from a run's command line."""
    runs = runs_of(tmp_path, FILE) if name == 'the one above' else read_sweep(find_sweep(name))
    different = {run.name.rpartition('/')[0]: run for run in runs}
    for run in list(different.values())[::13]:
        arguments = [*run.arguments, '--run-dir', 'x', '--resume', 'auto']
        args = tyro.cli(
            Train,
            default=Train.defaults(arguments),
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        assert args.config == run.config


def test_the_ready_sweeps_are_those_of_the_paper():
    tasks = {
        name: {run.config.task for run in read_sweep(find_sweep(name))} for name in ready_sweeps()
    }
    assert {name: len(found) for name, found in tasks.items()} == {
        'maze': 1,
        'paper-d4rl': 18,
        'paper-online': 15,
        'paper-pixels': 5,
        'paper-states': 50,
        'small': 3,
        'small-states': 3,
    }
    online = {run.config.task: run.config for run in read_sweep(find_sweep('paper-online'))}
    alphas = {task: config.agent.alpha for task, config in online.items()}
    assert alphas['pen-cloned-v1'] == alphas['door-cloned-v1'] == alphas['hammer-cloned-v1'] == 1e3
    assert alphas['relocate-cloned-v1'] == 1e4
    assert alphas['antsoccer-arena-navigate-singletask-v0'] == 30
    assert {config.total_updates for config in online.values()} == {2_000_000}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('tasks = [', 'not valid TOML'),
        ('task = ["x"]', "unknown key 'task'"),
        ('seeds = [0]', 'tasks must not be empty'),
        ('tasks = "cube"', 'tasks must be a list of names'),
        ('tasks = ["antmaze-umaze-v3"]', "unknown task 'antmaze-umaze-v3'; the nearest are"),
        ('tasks = ["antmaze-*-v9"]', "no task matches 'antmaze-\\*-v9'"),
        ('tasks = ["antmaze-umaze-v2", "antmaze-u*"]', 'antmaze-umaze-v2 is named twice'),
        ('A\nagents = ["fqll"]', "unknown agent 'fqll'"),
        ('A\nseeds = [0, 0]', 'seeds: 0 is named twice'),
        ('A\nseeds = [true]', 'seeds must be a list of whole numbers'),
        ('A\nseeds = [-1]', 'seed must lie in'),
        ('A\n[settings]\nbatchsize = 8', "has no setting 'batchsize'; the nearest are batch-size"),
        ('A\n[settings]\nexpectile = 0.5', "agent fql has no setting 'expectile'"),
        ('A\n[settings]\nsteps = "many"', "fql: steps must be int, not 'many'"),
        ('A\n[settings]\nsteps = -1', 'steps must lie in'),
        ('A\n[settings]\nonline.alpha = 7', 'online.alpha is a setting of the online phase: give'),
        ('A\n[settings]\nencoder.size = "big"', 'encoder.size must be one of'),
        ('A\n[settings]\nseed = 1', 'settings: seed cannot be set here'),
        ('A\n[settings]\nsave-interval = 0', 'must be resumable'),
        ('A\n[variants.x]\nalpha = []', 'antmaze-umaze-v2, fql, x: alpha must be float'),
        ('A\n[variants."a/b"]', "variants: 'a/b' is not a valid name"),
        ('A\n[variants."a\\nb"]', 'is not a valid name'),
        (f'A\n[variants.{"a" * 300}]', 'is not a valid name'),
        ('A\n[variants.""]', "'' is not a valid name"),
        ('A\n[variants.seed-1]', "'seed-1' is the name of a run"),
        ('A\n[variants.a]\n[variants.b]\nlr = 3e-4', 'fql/a and .*fql/b have the same settings'),
        ('A\n[variants.a]\n[variants.b]\neval-workers = 2', 'have the same settings'),
        ('A\n[settings]\nonline.from = "x"', 'settings: online.from cannot be set here'),
        ('A\n[settings]\nsteps = 2026-01-02', "steps must be int, not '2026-01-02'"),
        (f'A\nseeds = [{"9" * 5000}]', 'not valid TOML: Exceeds the limit'),
        (f'A\nseeds = {"[" * 5000}', 'not valid TOML: maximum recursion'),
        ('A\n[agent-settings.iql]\nlr = 1', "agent-settings: the sweep has no 'iql'"),
        ('A\n[task-settings."cube*"]\nlr = 1', "task-settings: the sweep has no 'cube\\*'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(FQLError, match=message) as raised:
        runs_of(tmp_path, text.replace('A\n', 'tasks = ["antmaze-umaze-v2"]\n'))
    assert '\n' not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / 'sweep.toml'))


def test_a_value_that_looks_like_a_flag_is_a_value(tmp_path):
    text = 'tasks = ["antmaze-umaze-v2"]\n[settings]\nwandb-project = "--agent"'
    (run,) = runs_of(tmp_path, text)
    arguments = [*run.arguments, '--run-dir', 'x']
    default, config = Train.defaults(arguments), (tyro.conf.OmitArgPrefixes,)
    assert tyro.cli(Train, default=default, args=arguments, config=config).config == run.config


def test_many_seeds_are_read_in_no_time(tmp_path):
    """Not by comparing each with all others."""
    seeds = list(range(20_000))
    text = f'tasks = ["antmaze-umaze-v2"]\nseeds = {seeds}'
    assert [run.config.seed for run in runs_of(tmp_path, text)] == seeds


def test_the_example_of_the_docs(tmp_path):
    text = (Path(__file__).parents[3] / 'docs' / 'sweeps.md').read_text()
    (example,) = re.findall(r'```toml\n(.*?)```', text, re.DOTALL)
    runs = {run.name: run.config for run in runs_of(tmp_path, example)}
    assert len(runs) == 6 * 2 * 4 * 2
    agent = runs[f'{CUBES.format(1)}/qc_fql/separate/seed-0'].agent
    assert (agent.alpha, agent.horizon, agent.encoder.sharing) == (100, 5, 'separate')


def test_a_name_that_is_no_file_is_answered_with_those_there_are():
    with pytest.raises(
        FQLError, match='x is neither a file nor one of maze, paper-d4rl, paper-online'
    ):
        find_sweep('x')
