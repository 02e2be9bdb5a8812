"""The summary at the end of a run, from evaluations written by hand."""

from types import SimpleNamespace

import pytest

from fql.agents.configs import EncoderConfig, FQLConfig, SACConfig
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import RunSpec, write_spec
from fql.settings.train_config import TrainConfig
from fql.training.summaries import encoder_text, end_summary

CUBE = 'visual-cube-single-play-singletask-task1-v0'


SUCCESS = 'evaluation/success,evaluation/return'


def summary(path, columns, row, **settings):
    folder = RunFolder(path)
    write_spec(folder, RunSpec(TrainConfig(**settings), (4,), 'float32', 2))
    folder.eval_csv.write_text(f'step,{columns}\n{row}\n')
    return end_summary(folder, updates=7, seconds=60)


def test_the_papers_result_stands_beside_a_runs(tmp_path):
    text = summary(tmp_path, SUCCESS, '10,0.5,1.0', task=CUBE, agent=FQLConfig())
    assert 'success: 10: 50.0%' in text
    assert 'published: 81 ± 12 % (Park, Li, Levine 2025 (arXiv 2502.02538)' in text


@pytest.mark.parametrize(
    'settings',
    [{'task': CUBE, 'agent': SACConfig()}, {'task': CUBE.replace('task1', 'task2')}],
)
def test_what_is_not_known_is_left_out(tmp_path, settings):
    assert 'published' not in summary(tmp_path, SUCCESS, '10,0.5,1.0', **settings)


def test_without_success_the_return_is_reported(tmp_path):
    text = summary(tmp_path, SUCCESS, '10,nan,-3.25', task='own', dataset='d', env='m:Id-v0')
    assert 'return: 10: -3.2' in text


def test_data_that_are_gone_make_no_comparable_score(tmp_path):
    columns = f'{SUCCESS},evaluation/score'
    settings = {'task': 'antmaze-umaze-v2', 'data_dir': str(tmp_path / 'none')}
    text = summary(tmp_path, columns, '10,0.5,0.5,50.0', **settings)
    assert 'score: 10: 50.0' in text
    assert 'not comparable with D4RL: the data are no longer there' in text


def test_a_run_resumed_before_its_first_update_needs_no_saved_encoder(tmp_path):
    encoder = EncoderConfig(mode='frozen', source=str(tmp_path / 'gone'))
    config = TrainConfig(task=CUBE, agent=FQLConfig(encoder=encoder))
    spec = RunSpec(config, (64, 64, 3), 'uint8', 2)
    assert encoder_text(spec, SimpleNamespace(step=0)).endswith(f'frozen, from {tmp_path}/gone')
