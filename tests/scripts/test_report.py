"""`fql report` against successes written by hand, and its page in a browser."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from fql.agents.configs import EncoderConfig, FQLConfig, IQLConfig
from fql.envs.tasks import QUICKSTART_TASK, find_task
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import RunSpec, write_spec
from fql.settings.presets import default_config
from fql.settings.train_config import TrainConfig
from tests.fql.reports.browser import Browser, chromium

CUBE = 'visual-cube-single-play-singletask-task1-v0'


def write_run(path, successes, config=None):
    path.mkdir(parents=True)
    rows = [f'{step},{success},-1.5' for step, success in successes.items()]
    header = 'step,evaluation/success,evaluation/return'
    (path / 'eval.csv').write_text('\n'.join([header, *rows, '']))
    spec = RunSpec(config or TrainConfig(task=CUBE), (64, 64, 9), 'uint8', 5)
    write_spec(RunFolder(path), spec)
    return path


def cells(line):
    return re.split(r'  +', line.strip())


def test_runs_of_other_seeds_are_one_group(fql, tmp_path):
    runs = [
        write_run(tmp_path / 'a', {10: 0.0, 20: 0.5, 30: 0.9}, TrainConfig(task=CUBE, seed=0)),
        write_run(
            tmp_path / 'b',
            {10: 0.3, 20: 0.7, 30: 0.5},
            # Neither interval has an effect on results.
            TrainConfig(task=CUBE, seed=1, log_interval=5, save_interval=10),
        ),
        write_run(tmp_path / 'c', {10: 0.1, 20: 0.1}, TrainConfig(task=CUBE, seed=2)),
        write_run(tmp_path / 'd', {30: 0.25}, TrainConfig(task=CUBE, agent=IQLConfig())),
        write_run(tmp_path / 'e', {30: 0.75}, TrainConfig(task=CUBE, batch_size=8)),
    ]
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    task, header, *rows, source, left_out, written = done.stdout.strip().splitlines()
    assert task == CUBE
    assert cells(header) == [
        *('seeds', 'updates', 'success', '95 % interval', 'IQM', 'last 3', 'paper')
    ]
    # The run of seed 2 is shorter. Intervals of two runs end at these values.
    assert cells(rows[0]) == [
        *('fql (batch-size 256)', '2', '30', '70.0%', '50.0% to 90.0%', '70.0%', '48.3%'),
        '81 ± 12 %',
    ]
    assert cells(rows[1]) == [
        *('fql (batch-size 8)', '1', '30', '75.0%', '-', '75.0%', '-', '81 ± 12 %')
    ]
    assert cells(rows[2]) == ['iql', '1', '30', '25.0%', '-', '25.0%', '-', '70 ± 12 %']
    assert source.startswith('paper: Park, Li, Levine 2025 (arXiv 2502.02538)')
    assert left_out == 'not finished, or left out: 1 (listed on the page)'
    assert written == f'wrote {tmp_path / "r.html"}'
    page = (tmp_path / 'r.html').read_text()
    left_out = page[page.index('Not run, or not to the end') :]
    assert 'fql (batch-size 256)' in left_out
    assert 'left out of the tables: evaluated up to update 20 only' in left_out


@pytest.mark.parametrize(
    ('name', 'groups'),
    [
        ('pretrain-{seed}/encoder', 1),
        ('seed-00{seed}', 1),
        ('cube-{seed}00001', 2),
        ('cube-{seed}0', 2),
        ('pre-500/encoder', 1),
    ],
)
def test_encoders_of_each_seed_are_one_setting(fql, tmp_path, name, groups):
    """Other numbers in a folder's name are another setting, such as the updates made."""
    runs = []
    for seed in (0, 1):
        encoder = EncoderConfig(mode='frozen', source=f'/x/{name.format(seed=seed)}')
        config = TrainConfig(task=CUBE, seed=seed, agent=FQLConfig(encoder=encoder))
        runs.append(write_run(tmp_path / str(seed), {1: 0.5}, config))
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    rows = [cells(line)[1] for line in done.stdout.splitlines()[2 : 2 + groups]]
    assert rows == [str(2 // groups)] * groups


def test_what_cannot_be_is_refused(fql, assert_one_line, tmp_path):
    out = ('--out', tmp_path / 'new.html')
    assert_one_line(fql('report', *out), 'name run folders')
    run = write_run(tmp_path / 'run', {10: 0.0})
    (tmp_path / 'there.html').write_text('mine')
    assert_one_line(fql('report', run, '--out', tmp_path / 'there.html'), 'there.html exists')
    assert (tmp_path / 'there.html').read_text() == 'mine'
    assert_one_line(fql('report', run, '--out', tmp_path / 'x.png'), 'only .html pages')
    assert_one_line(fql('report', run, tmp_path / 'none', *out), 'none does not exist')
    assert_one_line(fql('report', tmp_path, *out), 'no run with evaluations', 'is not a run folder')
    twin = write_run(tmp_path / 'twin', {10: 0.0})
    assert_one_line(fql('report', run, twin, *out), 'have the same settings and seed')
    assert not (tmp_path / 'new.html').exists()


def pretraining(path):
    path.mkdir()
    (path / 'pretraining.json').write_text('{}')


def exported(path):
    write_run(path, {})
    (path / 'policy.json').write_text('{}')


def test_many_folders_without_results_are_named_in_short(fql, assert_one_line, tmp_path):
    folders = [tmp_path / str(i) for i in range(5)]
    for folder in folders:
        folder.mkdir()
    done = fql('report', *folders, '--out', tmp_path / 'r.html')
    assert_one_line(done, f'{folders[2]} and 2 more: no run with evaluations; {folders[0]} is not')


NOT_READY = {
    'without evaluations yet': lambda path: write_run(path, {}, TrainConfig(CUBE, seed=7)),
    'just started': lambda path: (path / 'checkpoints').mkdir(parents=True),
    'a pretraining': pretraining,
    'an exported policy': exported,
    'damaged': lambda path: (write_run(path, {1: 0.5}) / 'config.json').write_text('{'),
    'a page': lambda path: path.write_text('<p>'),
}


@pytest.mark.parametrize('state', NOT_READY)
def test_a_folder_that_is_not_ready_does_not_hide_the_others(fql, assert_one_line, tmp_path, state):
    """As where runs/* is given."""
    run = write_run(tmp_path / 'run', {10: 0.5})
    NOT_READY[state](tmp_path / 'new')
    done = fql('report', tmp_path / 'new', run, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    assert '50.0%' in done.stdout
    assert 'not finished, or left out: 1 (listed on the page)' in done.stdout
    page = (tmp_path / 'r.html').read_text()
    listed = page[page.index('Not run, or not to the end') :]
    assert str(tmp_path / 'new') in listed
    assert ('<span>7</span>' in listed) == (state == 'without evaluations yet')
    done = fql('report', tmp_path / 'new', '--out', tmp_path / 'n.html')
    assert_one_line(done, 'no run with evaluations', str(tmp_path / 'new'))


def own_runs(folder, *runs):
    """Runs of task own: each of (dataset, environment, agent, success)."""
    return [
        write_run(
            folder / str(i),
            {10: success},
            TrainConfig('own', dataset=dataset, env=env, agent=agent),
        )
        for i, (dataset, env, agent, success) in enumerate(runs)
    ]


def test_runs_on_other_data_are_other_groups(fql, tmp_path):
    runs = [
        write_run(tmp_path / name, {10: success}, TrainConfig(CUBE, dataset=name))
        for name, success in (('play', 0.2), ('noisy', 0.8))
    ]
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    rows = [cells(line)[:4] for line in done.stdout.splitlines()[2:4]]
    assert rows == [
        ['fql (dataset play)', '1', '10', '20.0%'],
        ['fql (dataset noisy)', '1', '10', '80.0%'],
    ]


def test_each_own_dataset_is_a_task_of_its_own(fql, tmp_path):
    """Agents on other data are not compared, and may be measured by other numbers."""
    maze, arm = 'maze:maze-v0', 'robots:arm/reach-v0'
    runs = own_runs(tmp_path, ('m', maze, FQLConfig(), 0.2), ('a b', arm, IQLConfig(), 0.8))
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines[0], lines[3]] == ['own: m', 'own: a b']
    page = (tmp_path / 'r.html').read_text()
    assert 'href="#own:-a-b"' in page
    assert 'id="own:-a-b"' in page
    assert 'Probability of a better result' not in page
    assert '--dataset</code>' not in page  # No setting that differs from a default.
    runs[1:] = own_runs(tmp_path / 'returns', ('x', arm, IQLConfig(), 'nan'))
    done = fql('report', *runs, '--out', tmp_path / 'n.html')
    assert done.returncode == 0, done.stderr
    assert [cells(line)[2] for line in done.stdout.splitlines()[1::3]] == ['success', 'return']


def test_environments_of_one_own_dataset_are_told_apart(fql, tmp_path):
    runs = own_runs(
        tmp_path,
        ('m', 'maze:maze-v0', FQLConfig(), 0.2),
        ('m', 'maze:large/maze-v0', FQLConfig(), 0.8),
        ('n', 'maze:maze-v0', FQLConfig(), 0.5),
    )
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:9:3] == [
        'own: m in maze:maze-v0',
        'own: m in maze:large/maze-v0',
        'own: n',
    ]


def test_tasks_of_one_dataset_are_averaged_beside_the_papers_average(fql, tmp_path):
    """As in its Table 2. A mean of the paper needs all tasks."""
    names = [
        f'{env}-play-singletask-task{n}-v0' for env in ('cube-double', 'scene') for n in (1, 2)
    ]
    runs = [
        write_run(tmp_path / task, {10: 0.1 * n}, default_config(find_task(task)))
        for n, task in enumerate(names)
    ]
    assert fql('report', *runs, '--out', tmp_path / 'r.html').returncode == 0
    page = (tmp_path / 'r.html').read_text()
    averages = page[page.index('Tasks of one dataset together') : page.index('id="cube-double')]
    shown = re.sub(r'<[^>]+>', ' ', averages).split()
    # Table 3: 61, 36 and 100, 76.
    assert [word for word in shown if word.endswith('%')] == ['5.0%', '48.5%', '25.0%', '88.0%']
    assert '<span>all 4</span>' in page  # None has other settings than the default.
    assert '68.2%' in page[: page.index('Tasks of one dataset together')]


def test_runs_that_are_measured_differently_are_compared_by_their_returns(fql, tmp_path):
    """Of one group, or of several of a task; other tasks keep their measure."""
    scored = write_run(tmp_path / 'scored', {}, TrainConfig(task=CUBE, seed=2))
    columns = 'evaluation/success,evaluation/return,evaluation/score'
    (scored / 'eval.csv').write_text(f'step,{columns}\n10,0.5,9.0,80.0\n')
    runs = [
        write_run(tmp_path / 'a', {10: 0.5}),
        write_run(tmp_path / 'b', {10: 'nan'}, TrainConfig(task=CUBE, seed=1)),
        scored,
        write_run(tmp_path / 'c', {10: 0.5}, TrainConfig(task=CUBE, agent=IQLConfig())),
        write_run(tmp_path / 'd', {10: 0.5}, TrainConfig(task=QUICKSTART_TASK)),
    ]
    done = fql('report', *runs, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    note = 'runs are measured by success or by return or by score: their returns are compared'
    lines = done.stdout.splitlines()
    assert lines[0] == f'{CUBE} ({note})'
    # The returns are -1.5, -1.5 and 9; the paper has none.
    assert cells(lines[1])[-1] == 'last 3'
    assert cells(lines[2])[:4] == ['fql', '3', '10', '2.0']
    assert cells(lines[3])[:4] == ['iql', '1', '10', '-1.5']
    assert lines[4] == QUICKSTART_TASK
    assert cells(lines[6])[:4] == ['fql', '1', '10', '50.0%']
    page = (tmp_path / 'r.html').read_text()
    assert note in page
    assert 'class="paper"' not in page


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder of three runs, of which the first has an evaluation."""
    folder = tmp_path / 'sweep'
    write_run(folder / CUBE / 'fql' / 'seed-0', {10: 0.5})
    (folder / 'sweep.toml').write_text(
        f'tasks = ["{CUBE}"]\nseeds = [0, 1, 2]\n[settings]\nsteps = 10'
    )
    return folder


DAMAGES = {
    'no row yet': lambda run: (run / 'eval.csv').write_text('step,evaluation/success\n'),
    'a damaged row': lambda run: (run / 'eval.csv').write_text('step,evaluation/success\n1\n2,1\n'),
    'a damaged config.json': lambda run: (run / 'config.json').write_text('{'),
    'folders': lambda run: [(run / name).mkdir() for name in ('train.csv', '../seed-1.log')],
    'pipes': lambda run: [os.mkfifo(run / name) for name in ('train.csv', '../seed-1.log')],
    'another evaluation': lambda run: [(run / 'eval.csv').unlink(), os.mkfifo(run / 'eval.csv')],
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_run_does_not_hide_the_others_of_a_sweep(fql, sweep, tmp_path, damage):
    DAMAGES[damage](
        write_run(sweep / CUBE / 'fql' / 'seed-1', {10: 0.5}, TrainConfig(CUBE, seed=1))
    )
    done = fql('report', sweep, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    assert 'not finished, or left out:' in done.stdout
    assert ', 0 of 10 updates' in (tmp_path / 'r.html').read_text()


def test_a_sweep_whose_runs_cannot_be_read(fql, sweep, tmp_path, assert_one_line):
    (sweep / CUBE / 'fql' / 'seed-0' / 'config.json').write_text('{')
    done = fql('report', sweep, '--out', tmp_path / 'r.html')
    assert_one_line(done, 'no run with evaluations', 'seed 0: ', 'config.json is not valid JSON')
    assert not (tmp_path / 'r.html').exists()


def test_a_sweep_of_another_user(sweep, tmp_path, fql, monkeypatch):
    """Its logs can be read only."""
    log = sweep / CUBE / 'fql' / 'seed-0.log'
    log.write_text('\n$ fql train\nfql: no disk\n')
    opened = Path.open

    def read_only(path, mode='r', *rest, **named):
        if path.suffix == '.log' and mode not in ('r', 'rb'):
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, 'open', read_only)
    done = fql('report', sweep, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    assert 'failed, 0 of 10 updates: fql: no disk' in (tmp_path / 'r.html').read_text()


def test_only_pictures_are_put_into_the_page(fql, tmp_path):
    """Not the file that a link in a stranger's run folder leads to."""
    run = write_run(tmp_path / 'run', {10: 0.5})
    (tmp_path / 'secret').write_text('a secret')
    (run / 'videos').mkdir()
    (run / 'videos' / '10.gif').symlink_to(tmp_path / 'secret')
    (run / 'videos' / '20.gif').mkdir()
    assert fql('report', run, '--out', tmp_path / 'r.html').returncode == 0
    assert 'base64' not in (tmp_path / 'r.html').read_text()


class Tags(HTMLParser):
    """What a page loads, and which of its tags are not closed."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.opened = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [v for name, v in attrs if name in ('src', 'srcset', 'data')]
        self.loaded += [dict(attrs)['href']] if tag in ('link', 'image') else []
        if tag not in ('meta', 'link', 'br', 'img'):
            self.opened.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


@pytest.fixture(scope='module')
def page(run_fql, tmp_path_factory):
    """Two tasks, two agents and a variant, three seeds; one with a name that is HTML."""
    folder = tmp_path_factory.mktemp('runs')
    rng = np.random.default_rng(0)
    runs = []
    for task in (CUBE, QUICKSTART_TASK):
        for name, agent in (
            ('fql', FQLConfig()),
            ('iql', IQLConfig()),
            ('<b>&', FQLConfig(hidden_dims=(8, 8))),
        ):
            for seed in range(3):
                successes = {n: round(rng.uniform(), 2) for n in (100_000, 200_000, 300_000)}
                config = TrainConfig(task=task, seed=seed, agent=agent)
                runs.append(write_run(folder / task / f'{name}-{seed}', successes, config))
            videos = runs[-3] / 'videos'
            videos.mkdir()
            frames = rng.integers(0, 256, (3, 60, 120, 3), np.uint8)
            iio.imwrite(videos / '300000.gif', frames, extension='.gif', duration=50, loop=0)
    done = run_fql('report', *runs, '--out', folder / 'report.html')
    assert done.returncode == 0, done.stderr
    return folder / 'report.html'


def test_the_page_has_all_in_itself(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.opened
    assert len([url for url in tags.loaded if url.startswith('data:image/gif;base64,')]) == 6
    assert all(url.startswith('data:') for url in tags.loaded)
    assert '<script' not in text
    assert 'url(http' not in text
    assert '<b>' not in text
    assert '&lt;b&gt;&amp;-0' in text
    # Two datasets of one task each.
    assert 'Tasks of one dataset together' not in text
    assert '81% <small>± 12%</small>' in text


@pytest.mark.long
@pytest.mark.skipif(chromium() is None, reason='no Chromium (apt-get install chromium)')
def test_the_page_in_a_browser(page, tmp_path):
    """It opens without an error or a network, and fits a phone, in light and dark mode."""
    browser = Browser(tmp_path / 'profile')
    try:
        grounds = []
        for width, dark in ((1200, False), (390, False), (390, True)):
            browser.open(page, width, dark)
            pictures = browser.evaluate('[...document.images].map(i => i.naturalWidth)')
            assert pictures == [120] * 6
            curves = browser.evaluate(
                '[...document.querySelectorAll(".curve svg")].map(s => s.clientWidth)'
            )
            assert len(curves) == 2
            assert min(curves) > 300
            # Without the scroll bar of a desktop window.
            assert browser.evaluate('document.documentElement.scrollWidth') <= width
            assert browser.evaluate('innerWidth') == width
            colours = browser.evaluate(
                '["backgroundColor", "color"].map(n => getComputedStyle(document.body)[n])'
            )
            ground, ink = (np.array(re.findall(r'\d+', colour), int) for colour in colours)
            grounds.append(ground.mean())
            assert abs(ground - ink).min() > 120
        assert grounds[0] == grounds[1] > 200
        assert grounds[2] < 60
        assert browser.faults == []
    finally:
        browser.close()


def test_a_folder_whose_name_is_no_text(fql, tmp_path):
    run = write_run(Path(os.fsdecode(bytes(tmp_path) + b'/r\xff')), {10: 0.5})
    done = fql('report', run, '--out', tmp_path / 'r.html')
    assert done.returncode == 0, done.stderr
    assert r'r\udcff' in (tmp_path / 'r.html').read_text()
