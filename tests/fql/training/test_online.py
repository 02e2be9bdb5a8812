"""The online phase's exploration, and the changes of its learner."""

import dataclasses
import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.files import write_json
from data_pipeline.online_loader import OnlineBatches
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.schema import read_json
from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig
from fql.batch import Batch
from fql.compiled import abstract_state
from fql.devices import one_device_mesh
from fql.envs.workers import Step
from fql.errors import FQLError
from fql.policies.evaluation import start_workers
from fql.runs.checkpoints import CheckpointWriter
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of, make_learner, make_online_learner
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import OnlineConfig, TrainConfig
from fql.training.online import (
    OnlinePhase,
    OnlineRecord,
    make_acting,
    offline_state,
    save_last_episode,
    saved_record,
    start_actors,
    train_online,
)

IMAGES = ((16, 16, 3), 'uint8')
STATES = ((5,), 'float32')
SMALL_FQL = FQLConfig(hidden_dims=(8,), alpha=3.0, flow_steps=1)


def make_spec(agent, observations=STATES, **online):
    config = TrainConfig(task='', frame_stack=1, agent=agent, online=OnlineConfig(**online))
    return RunSpec(config, *observations, action_dim=3)


@pytest.mark.parametrize(
    'beta', [2.0, *(pytest.param(beta, marks=pytest.mark.long) for beta in (0.0, 1e6))]
)
def test_ucb_takes_the_largest_upper_confidence_bound(beta):
    agent = FQLConfig(hidden_dims=(8,), num_critics=4)
    spec = make_spec(agent, exploration='ucb', ucb_candidates=6, ucb_beta=beta)
    params = make_learner(spec).init(0).params
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(7, 5)).astype(np.float32)
    episodes, steps = np.arange(7, dtype=np.int32), np.full(7, 3, np.int32)
    key = jax.random.key(1)
    chosen = make_acting(spec)(params, key, *map(jnp.asarray, (observations, episodes, steps)))

    plain = agent_of(spec)
    others = set()
    for i in range(7):
        sample_key = jax.random.fold_in(jax.random.fold_in(key, i), 3)
        noise = jax.random.normal(sample_key, (6, 3))
        latents = jnp.repeat(observations[i : i + 1], 6, axis=0)
        actions = np.clip(np.asarray(plain.one_step(params, latents, noise)), -1, 1)
        qs = np.asarray(plain.qs(params, latents, jnp.asarray(actions)), np.float64)
        best = np.argmax(qs.mean(axis=0) + beta * qs.std(axis=0))
        np.testing.assert_allclose(chosen[i, 0], actions[best], rtol=1e-5, atol=1e-6)
        others.add(best != np.argmax(qs.mean(axis=0)))
    assert others == ({False} if beta == 0 else {False, True} if beta == 2 else others)


@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_what_explores_is_a_policy_of_the_agent(name):
    agent = agent_of(make_spec(AGENT_CONFIGS[name](hidden_dims=(8,))))
    assert agent.exploring_policy in agent.policies
    random = {'iql': 'sample', 'sac': 'sample', 'rebrac': 'noisy'}
    assert agent.exploring_policy == random.get(name, agent.policies[0])


@pytest.mark.parametrize(
    ('name', 'policy'),
    [('iql', 'sample'), ('sac', 'sample'), ('rebrac', 'noisy'), ('fql', 'one_step')],
)
def test_the_exploring_policy_is_what_acts(name, policy):
    spec = make_spec(AGENT_CONFIGS[name](hidden_dims=(8,)))
    agent = agent_of(spec)
    params = jax.jit(agent.init_params)(jax.random.key(0))
    observations = jax.random.normal(jax.random.key(1), (4, 5))
    key, episodes, steps = jax.random.key(2), jnp.arange(4), jnp.asarray([0, 7, 2, 2])
    taken = make_acting(spec)(params, key, observations, episodes, steps)
    noise = jnp.stack(
        [
            jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, episode), step), (3,))
            for episode, step in zip(episodes, steps, strict=True)
        ]
    )
    expected = agent.act(params, observations, noise, policy)
    np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)
    silent = agent.act(params, observations, jnp.zeros_like(noise), policy)
    assert not np.isclose(taken, silent).all(axis=-1).any()


def test_a_step_is_chosen_before_the_updates_of_its_turn_and_made_during_them():
    """Two environments, four updates a turn, two of them a call."""
    events = []

    def update(state, batches):
        made = state.params + len(batches)
        events.append(f'updates to {made}')
        return SimpleNamespace(params=made)

    phase = OnlinePhase(
        TrainConfig(
            task='',
            steps=10,
            online=OnlineConfig(online_steps=4, online_workers=2, updates_per_env_step=2),
        ),
        replay=None,
        actors=SimpleNamespace(
            choose=lambda params: f'by {params}',
            begin=lambda chosen: events.append(f'steps begin {chosen}'),
            finish=lambda: events.append('steps end'),
        ),
        batches=SimpleNamespace(
            ask=lambda updates: events.append(f'batches of {list(updates)}'),
            take=lambda: (None, None),
        ),
        per_call=2,
        done=0,
        log=None,
        warmup=None,
    )
    state = SimpleNamespace(params=10)
    while phase.done < phase.total:
        state = phase.advance(state, update)
    assert events == [
        'batches of [10, 11, 12, 13]',
        *('updates to 12', 'steps begin by 10', 'updates to 14', 'steps end'),
        'batches of [14, 15, 16, 17]',
        *('updates to 16', 'steps begin by 14', 'updates to 18', 'steps end'),
        'batches of []',
    ]


class Pays:
    """In place of workers: an environment that pays 0.25 for every step."""

    spec = SimpleNamespace(env_id='pays')

    def reset(self, seeds):
        return {index: np.zeros(5, np.float32) for index in seeds}

    def begin_steps(self, actions):
        del actions

    def finish_steps(self, indices):
        return {i: Step(np.ones(5, np.float32), 0.25, False, False, 0.0) for i in indices}


@pytest.mark.parametrize(
    ('task', 'offset'),
    [('antmaze-large-play-v2', -1.0), ('cube-single-play-singletask-task1-v0', 0.0)],
)
def test_the_environments_rewards_are_stored_and_batches_add_what_the_datas_have_added(
    tmp_path, monkeypatch, task, offset
):
    spec = make_spec(FQLConfig(hidden_dims=(4,)), online_steps=1)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, task=task))
    rewards, offsets = [], []

    def make_batches(*arguments, **given):
        offsets.append(inspect.signature(OnlineBatches).bind(*arguments, **given).arguments)
        return nullcontext()

    class Phase:
        """Its first turn, without updates."""

        done = 0

        def __init__(self, config, replay, actors, *others):
            del config, others
            actors.begin(actors.choose(state.params))
            actors.finish()
            rewards.extend(replay.streams[0].read('rewards', 0, 1))

    @dataclasses.dataclass(frozen=True)
    class FakeTrainer:
        folder = RunFolder(tmp_path)
        train_step = SimpleNamespace(per_call=1)
        evaluate: object = None

        def run(self, state, phase, is_evaluation_missing):
            del phase, is_evaluation_missing
            return state, 0

    for name, fake in [
        ('OnlinePhase', Phase),
        ('OnlineBatches', make_batches),
        ('make_online_trainer', lambda trainer, *_: trainer),
        ('loader_config', lambda *_: None),
    ]:
        monkeypatch.setattr(f'fql.training.online.{name}', fake)
    data = SimpleNamespace(has_latents=False, split=None, rewards=None, masks=None)
    state = make_learner(spec).init(0)
    train_online(FakeTrainer(), state, spec, data, Pays(), False)
    assert rewards == [0.25]
    assert [given['reward_offset'] for given in offsets] == [offset]


@pytest.mark.parametrize('done', [3, 4])
def test_a_checkpoint_counts_what_is_on_the_disk(tmp_path, done):
    """The rows of the replay and of the episodes' log; before any update, beside the replay."""
    synced = []
    online = OnlineConfig(online_steps=8, online_warmup=3)
    streams = [{'rows': 9, 'crc32': {}}]

    def commit():
        synced.append('replay')
        return streams

    phase = OnlinePhase(
        TrainConfig(task='', steps=1, online=online),
        replay=SimpleNamespace(commit=commit),
        actors=SimpleNamespace(queues=(((0.5, 1.0),),)),
        batches=SimpleNamespace(ask=lambda updates: None),
        per_call=1,
        done=done,
        log=SimpleNamespace(sync=lambda: synced.append('log'), rows={'online.csv': 3}),
        warmup=tmp_path / 'warmup.json',
    )
    record = phase.metadata()['online']
    assert (record['env_steps'], record['rows']) == (done, {'online.csv': 3})
    assert sorted(synced) == ['log', 'replay']
    if done > 3:
        assert not list(tmp_path.iterdir())
    else:
        again = read_json(tmp_path / 'warmup.json', OnlineRecord)
        assert vars(again) == {**record, 'streams': tuple(streams)}


def test_a_phase_without_updates_continues_from_the_record_beside_its_replay(tmp_path):
    folder, config = RunFolder(tmp_path), TrainConfig(task='', steps=5)
    assert saved_record(folder, 5, config) is None
    folder.replay.mkdir()
    record = OnlineRecord(3, {'online.csv': 1}, ({'rows': 4, 'crc32': {}},), (((0.5,),),))
    write_json(folder.online_warmup, vars(record))
    assert saved_record(folder, 5, config) == record
    assert saved_record(folder, 4, config) is None
    folder.online_warmup.write_text('{"env_steps": 3}')
    with pytest.raises(FQLError, match=r'warmup\.json is damaged: no field queues, rows'):
        saved_record(folder, 5, config)


@pytest.mark.parametrize('length', [3, 1000])
def test_the_video_of_an_episode_has_its_end(tmp_path, monkeypatch, length):
    shown = []
    monkeypatch.setattr(
        'fql.training.online.save_video', lambda path, recordings, fps: shown.extend(recordings)
    )
    layout = RowLayout((4, 4, 3), 'uint8', 1)

    def frame(step):
        return np.full((4, 4, 3), step % 256, np.uint8)

    with Replay(tmp_path / 'replay', 'env', layout, 1) as replay:
        (stream,) = replay.streams
        stream.start(frame(99))
        stream.step(np.zeros(1), 0.0, 1.0, frame(98), ends=True)
        stream.start(frame(0))
        for step in range(1, length + 1):
            stream.step(np.zeros(1), 0.0, 1.0, frame(step), ends=step == length)
        stream.start(frame(97))
        save_last_episode(RunFolder(tmp_path), replay, 7)
    ((recording),) = shown
    assert recording.number == 1
    assert (recording.steps[0], recording.steps[-1]) == (0, length)
    assert len(recording.steps) == min(length + 1, 300)
    assert (np.diff(recording.steps) > 0).all()
    assert recording.frames[:, 0, 0, 0].tolist() == [step % 256 for step in recording.steps]


class _Started(Exception):
    """Carries what environments were to be started with."""


@pytest.mark.parametrize('timing', ['pre', 'post'])
def test_when_success_is_judged(monkeypatch, timing):
    """In evaluations as the user says; in the online phase as the data are labelled."""

    def start(spec, *_):
        raise _Started(dict(spec.kwargs)['success_timing'])

    monkeypatch.setattr('fql.policies.evaluation.EnvWorkers', start)
    task = 'cube-single-play-singletask-task1-v0'
    config = TrainConfig(task, success_timing=timing, online=OnlineConfig(online_steps=1))
    spec = RunSpec(config, (28,), 'float32', 5)
    with pytest.raises(_Started, match=timing):
        start_workers(spec, config, 1, 1)
    with pytest.raises(_Started, match='pre'):
        start_actors(spec)


@pytest.mark.parametrize(('seed', 'is_same'), [(3, True), (4, False)])
def test_a_phase_from_another_run_draws_by_its_own_seed(tmp_path, seed, is_same):
    spec = make_spec(FQLConfig(hidden_dims=(4,)))
    learner = make_learner(spec)
    state = learner.init(3)
    with CheckpointWriter(RunFolder(tmp_path).checkpoints, 1) as writer:
        writer.save(state, {})
    online = OnlineConfig(online_steps=1, source=str(tmp_path))
    config = dataclasses.replace(spec.config, steps=0, seed=seed, online=online)
    found = offline_state(config, abstract_state(learner, one_device_mesh()))
    assert (
        jnp.array_equal(jax.random.key_data(found.key), jax.random.key_data(state.key)) == is_same
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)


def some_batch(shape, dtype):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, *shape)).astype(dtype) for _ in range(2)]
    actions = rng.uniform(-1, 1, (4, 3)).astype(np.float32)
    ones = np.ones(4, np.float32)
    return Batch(images[0], actions, -ones, ones, images[1])


@pytest.mark.parametrize(('alpha', 'weight'), [(5.0, 5.0), (0.0, 0.0), (None, 3.0)])
def test_the_online_loss_has_the_online_alpha(alpha, weight):
    learner = make_online_learner(make_spec(SMALL_FQL, alpha=alpha))
    state, batch = learner.init(0), some_batch(*STATES)
    draws = learner.draws(state, batch)
    _, metrics = learner.agent.loss(state.params, state.target_params, batch, draws, state.step)
    flow, distill, q = (metrics[f'actor/{part}_loss'] for part in ('bc_flow', 'distill', 'q'))
    np.testing.assert_allclose(metrics['actor/loss'], flow + weight * distill + q, rtol=1e-5)


@pytest.mark.parametrize('mode', ['scratch', 'finetune'])
def test_only_the_encoders_updates_are_scaled_online(mode):
    encoder = EncoderConfig(mode=mode, source='x' * (mode != 'scratch'))
    spec = make_spec(dataclasses.replace(SMALL_FQL, encoder=encoder), encoder_lr_multiplier=0.25)
    grads = {'encoders': {'shared': jnp.asarray([0.5, -2.0])}, 'critic': jnp.asarray([3.0])}

    def steps(learner):
        first, state = learner.optimizer.update(grads, learner.optimizer.init(grads), grads)
        second, _ = learner.optimizer.update(jax.tree.map(jnp.negative, grads), state, grads)
        return first, second

    for before, after in zip(
        steps(make_learner(spec)), steps(make_online_learner(spec)), strict=True
    ):
        np.testing.assert_array_equal(after['critic'], before['critic'])
        expected = 0.25 * before['encoders']['shared']
        np.testing.assert_allclose(after['encoders']['shared'], expected, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize('mode', ['scratch', 'finetune'])
def test_the_online_phase_has_an_alpha_and_an_encoders_rate_of_its_own(mode):
    """Its state continues the offline one, and has the same structure."""
    encoder = EncoderConfig(size='impala_debug', mode=mode, source='x' * (mode != 'scratch'))
    agent = FQLConfig(hidden_dims=(8,), alpha=3.0, flow_steps=1, encoder=encoder)
    spec = make_spec(agent, IMAGES, alpha=5.0, encoder_lr_multiplier=0.25)
    batch = some_batch(*IMAGES)
    offline, online = make_learner(spec), make_online_learner(spec)
    state = offline.init(0)
    (before, metrics), (after, online_metrics) = (
        learner.update(state, batch) for learner in (offline, online)
    )
    assert jax.tree.structure(before) == jax.tree.structure(after)
    difference = (online_metrics['actor/loss'] - metrics['actor/loss']).item()
    assert difference == pytest.approx(2 * metrics['actor/distill_loss'].item(), rel=1e-4)
    same_alpha = dataclasses.replace(spec.config.online, alpha=None)
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, online=same_alpha))
    after, _ = make_online_learner(spec).update(state, batch)
    for name in ('encoders', 'critic'):
        steps = [
            jax.tree.map(lambda new, old: new - old, moved.params[name], state.params[name])
            for moved in (before, after)
        ]
        factor = 0.25 if name == 'encoders' else 1.0
        for whole, scaled in zip(*map(jax.tree.leaves, steps), strict=True):
            np.testing.assert_allclose(scaled, factor * whole, rtol=1e-3, atol=1e-7)
