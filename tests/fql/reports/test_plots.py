"""Pictures of a run: their parts do not overlap, and none is half written."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_pipeline.sample_layout import frame_offsets
from fql.reports.critic_plots import plot_critic
from fql.reports.plots import learning_curve, plot_batch, plot_learning_curve
from fql.runs.run_folder import RunFolder

TAB_ORANGE, TAB_GREEN = (255, 127, 14), (44, 160, 44)


@pytest.fixture
def run(tmp_path):
    rows = [f'{step},{step / 100},{step / 10}' for step in range(10, 101, 10)]
    (tmp_path / 'eval.csv').write_text('\n'.join(['step,evaluation/success,x', *rows]) + '\n')
    (tmp_path / 'train.csv').write_text('\n'.join(['step,critic/loss,critic/q_mean', *rows]) + '\n')
    return RunFolder(tmp_path)


BASELINES = {'behaviour-cloned flow policy': 0.0, 'random policy': 0.0}


def test_legends_lie_beside_the_axes(run):
    figure = learning_curve(run, 'title', BASELINES)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent())
        assert figure.bbox.containsx(legend.x0)
        assert figure.bbox.containsx(legend.x1)
        assert legend.y0 >= 0


def test_lines_of_equal_values_are_all_seen(run):
    plot_learning_curve(run, 'title', BASELINES)
    picture = iio.imread(run.learning_curve)[..., :3].astype(int)
    rows, columns = picture.shape[0] * 3 // 4, picture.shape[1] // 3  # Without the legend.
    for colour in (TAB_ORANGE, TAB_GREEN):
        near = np.abs(picture[:rows, :columns] - colour).max(axis=-1) < 12
        assert near.sum() > 200


WRITE = """
import gc, sys
import numpy as np
from fql.reports.video import Recording, save_video
try:
    save_video(sys.argv[1], [Recording(0, np.zeros((2, 8, 8, 3), np.uint8), [0, 1], 1.0)], 20)
except OSError as error:
    print(error)
gc.collect()
"""


def test_a_video_that_cannot_be_written(run_python, tmp_path):
    """One fault is raised, and none is reported later."""
    (tmp_path / '5.gif').mkdir()
    done = run_python(WRITE, tmp_path / '5.gif')
    assert '5.gif' in done.stdout
    assert done.stderr == ''
    assert [path.name for path in tmp_path.iterdir()] == ['5.gif']


@pytest.mark.parametrize('value', [1e308, -1e200, np.inf, np.nan])
def test_returns_too_large_to_be_drawn(run, value):
    rows = f'1,nan,1\n2,nan,{value}\n3,nan,{-value / 2}\n'
    run.eval_csv.write_text(f'step,evaluation/success,evaluation/return\n{rows}')
    plot_learning_curve(run, 'title')
    drawn = learning_curve(run, 'title').axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, [1, np.nan, np.nan])


def test_a_picture_that_is_broken_off_replaces_none(tmp_path, monkeypatch):
    """A sweep takes a run with a curve as finished."""
    run = RunFolder(tmp_path)

    def broken_off(figure, path, **named):
        Path(path).write_bytes(b'\x89PNG')
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, 'savefig', broken_off)
    numbers = np.ones(3)
    with pytest.raises(KeyboardInterrupt):
        plot_learning_curve(run, 'fql')
    with pytest.raises(KeyboardInterrupt):
        plot_critic(tmp_path / 'a.png', numbers, numbers, numbers, None, None, 'fql')
    assert not list(tmp_path.iterdir())


def test_a_title_is_no_formula(tmp_path):
    numbers, title = np.ones(3), 'runs/a$^$b, update 1'
    plot_critic(tmp_path / 'a.png', numbers, numbers, numbers, None, None, title)
    assert (tmp_path / 'a.png').stat().st_size > 5_000


@pytest.mark.parametrize(
    ('stack', 'horizon', 'names'),
    [
        (3, 1, ['t-2', 't-1', 't', 't+1']),
        (1, 1, ['t', 't+1']),
        (3, 5, ['t-2', 't-1', 't', 't+3', 't+4', 't+5']),
        (3, 2, ['t-2', 't-1', 't', 't+1', 't+2']),
        (1, 5, ['t', 't+5']),
    ],
)
def test_frames_of_a_batch_are_named_by_their_steps(tmp_path, monkeypatch, stack, horizon, names):
    drawn = []
    monkeypatch.setattr('fql.reports.plots.save_picture', lambda figure, path: drawn.append(figure))
    count = stack + min(stack, horizon)
    arrays = {
        'inputs': np.zeros((2, count, 4, 4, 3), np.uint8),
        'actions': np.zeros((2, 1)),
        'rewards': np.zeros(2),
        'masks': np.ones(2),
        'indices': np.arange(2),
        'shifts': np.zeros((2, 2), int),
    }
    plot_batch(tmp_path / 'batch.png', arrays, frame_offsets(stack, horizon), 'a batch')
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles[:count] == [f'frame {name}' for name in names]
