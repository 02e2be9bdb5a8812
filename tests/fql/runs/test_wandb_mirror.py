"""Weights & Biases, with a stub of its package."""

import socket
import sys
from types import SimpleNamespace

import pytest

from fql.agents.configs import EncoderConfig, FQLConfig
from fql.errors import FQLError
from fql.runs.run_folder import RunFolder
from fql.runs.wandb_mirror import wandb_mirror
from fql.settings.train_config import TrainConfig

CONFIG = TrainConfig(task='t', wandb_project='p')


class WandbError(Exception):
    """`wandb.Error`."""


@pytest.fixture
def started(monkeypatch):
    """The arguments of every `wandb.init`, with the rows that were logged then."""
    calls = []

    def init(**arguments):
        if arguments['project'] == 'offline':
            raise WandbError('no API key\nrun wandb login')
        rows = []
        calls.append({**arguments, 'rows': rows})
        return SimpleNamespace(log=lambda metrics, step: rows.append((step, metrics)))

    monkeypatch.setitem(
        sys.modules, 'wandb', SimpleNamespace(init=init, Error=WandbError, Settings=dict)
    )
    return calls


def test_a_run_keeps_its_id_and_shares_it_with_no_other(started, tmp_path):
    for name in ('a/seed0', 'b/seed0', 'a/seed0'):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        wandb_mirror(CONFIG, RunFolder(tmp_path / name))(7, {'loss': 1.5})
    first, second, resumed = started
    assert first['name'] == second['name'] == 'seed0'
    assert first['id'] == resumed['id'] != second['id']
    assert first['rows'] == [(7, {'loss': 1.5})]
    assert first['config']['agent']['lr'] == CONFIG.agent.lr


def test_neither_paths_nor_the_machines_name_are_sent(started, tmp_path):
    encoder = EncoderConfig(source='/home/me/encoders/cube', mode='frozen')
    config = TrainConfig(
        task='t', wandb_project='p', data_dir='/data/me', agent=FQLConfig(encoder=encoder)
    )
    wandb_mirror(config, RunFolder(tmp_path))
    (arguments,) = started
    sent = repr({name: value for name, value in arguments.items() if name != 'dir'})
    assert '/me' not in sent
    assert str(tmp_path) not in sent
    assert arguments['config']['agent']['encoder']['source'] == 'cube'
    settings = arguments['settings']
    assert settings['host'] != socket.gethostname()
    assert settings['x_disable_meta'] is True
    assert settings['console'] == 'off'


def test_its_faults_are_one_line(started, tmp_path):
    config = TrainConfig(task='t', wandb_project='offline')
    with pytest.raises(FQLError, match=r'^Weights & Biases: no API key$'):
        wandb_mirror(config, RunFolder(tmp_path))
