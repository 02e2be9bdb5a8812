"""`fql inspect critic`."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store.frame_store import open_store
from fql.agents.configs import BCConfig
from fql.envs.tasks import QUICKSTART_TASK
from fql.reports.critic_plots import binned
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_spec, write_spec
from fql.settings.train_config import TrainConfig
from fql.training.critic_inspection import compared_actions, inspect_critic
from fql.training.training_data import batch_of_update

SMALL = (
    *('--task', QUICKSTART_TASK, '--steps', 1, '--eval-interval', 0, '--log-interval', 0),
    *('--batch-size', 8, '--hidden-dims', 8),
)
STATES = 32


@pytest.fixture(scope='module')
def run(run_fql, prepared, tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'run'
    assert run_fql('train', *SMALL, '--run-dir', path).returncode == 0
    return path


def test_it_prints_a_table_and_draws(fql, run, tmp_path):
    png = tmp_path / 'critic.png'
    done = fql('inspect', 'critic', run, '--states', STATES, '--png', png)
    assert done.returncode == 0, done.stderr
    assert 'update 1, 32 states' in done.stdout
    assert 'action gap: best of 16 actions' in done.stdout
    assert png.stat().st_size > 10_000


def test_the_numbers_are_the_critics(run):
    spec = read_spec(RunFolder(run))
    inspection = inspect_critic(run, None, STATES)
    config = dataclasses.replace(spec.config, batch_size=STATES, shift_probability=0.0)
    observations = batch_of_update(config, 0)[1].observations
    agent, (_, params) = agent_of(spec), restore_params(RunFolder(run), spec, None)
    latents = agent.encoding.encode(params, 'critic', observations)
    own = agent.act(params, observations, np.zeros((STATES, 2)), 'one_step')[:, 0]
    qs = np.asarray(agent.qs(params, latents, own))
    np.testing.assert_allclose(inspection.values, qs.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(inspection.disagreements, qs.std(axis=0), rtol=1e-3, atol=1e-6)
    actions = compared_actions(2, 0)
    qs = np.stack(
        [agent.qs(params, latents, np.tile(a, (STATES, 1))).mean(axis=0) for a in actions], axis=1
    )
    np.testing.assert_allclose(
        inspection.gaps, qs.max(axis=1) - qs.mean(axis=1), rtol=1e-2, atol=1e-6
    )
    assert inspection.positions is not None
    assert inspection.positions.shape == (STATES, 2)


def test_the_data_may_lie_elsewhere_but_are_the_same(
    fql, assert_one_line, run, prepared, maze_npz, environment, tmp_path
):
    arguments = ('inspect', 'critic', run, '--states', STATES, '--data-dir', tmp_path)
    assert_one_line(fql(*arguments), f'no dataset {prepared} in {tmp_path}')
    original = Path(environment['FQL_DATA_DIR']) / prepared
    shutil.copytree(original, tmp_path / prepared)
    assert fql(*arguments).stdout == fql(*arguments[:-2]).stdout
    with (tmp_path / prepared / 'train' / 'actions.npy').open('r+b') as file:
        file.seek(-4, os.SEEK_END)
        file.write(bytes(4))
    assert_one_line(fql(*arguments), 'actions.npy is not what was written')
    with np.load(maze_npz) as file:
        np.savez(tmp_path / 'other.npz', **{**file, 'actions': file['actions'] / 2})
    source = ('--source', tmp_path / 'other.npz', '--data-dir', tmp_path, '--overwrite')
    assert fql('prepare', prepared, *source).returncode == 0
    assert_one_line(fql(*arguments), 'was trained on other data')


def test_few_data_have_few_states(fql, run, prepared, environment):
    done = fql('inspect', 'critic', run, '--states', 10**6)
    assert done.returncode == 0, done.stderr
    split = open_store(Path(environment['FQL_DATA_DIR']) / prepared).splits['train']
    begins = split.num_transitions - 4  # Of 5-step returns.
    assert f'update 1, {begins:,} states' in done.stdout


def test_directions_go_round():
    actions = compared_actions(2, 0)
    np.testing.assert_allclose(np.linalg.norm(actions, axis=1), 1, rtol=1e-6)
    assert len({tuple(np.round(action, 3)) for action in actions}) == len(actions)
    assert compared_actions(5, 0).shape == (64, 5)
    assert (np.abs(compared_actions(5, 0)) <= 1).all()


def test_every_state_lies_in_one_bin():
    positions = np.random.default_rng(0).normal(size=(100, 2))
    centres, groups = binned(positions)
    assert sorted(np.concatenate(groups)) == list(range(100))
    side = (positions.max(axis=0) - positions.min(axis=0)).max() / 24
    for centre, group in zip(centres, groups, strict=True):
        assert (np.abs(positions[group] - centre) <= side / 2 + 1e-9).all()


def test_an_agent_without_critics_is_refused(fql, assert_one_line, prepared, tmp_path):
    config = TrainConfig(task=QUICKSTART_TASK, agent=BCConfig())
    checkpoint = tmp_path / 'bc' / 'checkpoints' / '1'
    checkpoint.mkdir(parents=True)
    (checkpoint / 'checksums.json').touch()
    write_spec(RunFolder(tmp_path / 'bc'), RunSpec(config, (32, 32, 3), 'uint8', 2))
    done = fql('inspect', 'critic', tmp_path / 'bc')
    assert_one_line(done, 'agent bc has no critics')
