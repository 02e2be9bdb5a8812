"""Losses for which no values are published, against NumPy in float64.

Values behind a stop-gradient are computed here from a second set of parameters, which the finite
differences do not change. A missing gradient, or one too many, makes a difference.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.impala import ENCODERS, ImpalaEncoder
from fql.agents.configs import EncoderConfig, FAWACConfig, FBRACConfig, FQLConfig, QCConfig, Spec
from fql.agents.fawac import FAWAC, MAX_WEIGHT
from fql.agents.fbrac import FBRAC
from fql.agents.fql import FQL
from fql.agents.objectives import FlowDraws
from fql.agents.qc import QC
from fql.batch import Batch
from fql.learner import Learner, make_optimizer

BATCH, STATE, ACTION, STEPS, CANDIDATES = 6, 5, 2, 3, 4
COMMON = {'hidden_dims': (16, 16), 'flow_steps': STEPS, 'discount': 0.9}
AGENTS = {
    'fbrac': FBRAC(FBRACConfig(**COMMON, alpha=0.7), Spec((STATE,), ACTION)),
    'fbrac normalised, min': FBRAC(
        FBRACConfig(**COMMON, alpha=0.7, normalize_q_loss=True, q_agg='min'),
        Spec((STATE,), ACTION),
    ),
    'fawac': FAWAC(FAWACConfig(**COMMON, beta=3.0), Spec((STATE,), ACTION)),
    'fawac, large weights': FAWAC(
        FAWACConfig(**COMMON, beta=60.0, q_agg='min'), Spec((STATE,), ACTION)
    ),
    'fql, distilled velocity and many critics': FQL(
        FQLConfig(
            **COMMON, alpha=0.7, distillation='velocity', num_critics=4, critic_pessimism=0.5
        ),
        Spec((STATE,), ACTION),
    ),
    'fql, candidates in the target': FQL(
        FQLConfig(**COMMON, alpha=0.7, target_candidates=CANDIDATES, num_critics=3),
        Spec((STATE,), ACTION),
    ),
}


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(params, *inputs):
    """Dense layers; GELU and, if it has parameters, LayerNorm after hidden ones."""
    x = np.concatenate(inputs, axis=-1)
    layers = sum(name.startswith('dense') for name in params)
    for i in range(layers):
        x = x @ params[f'dense_{i}']['kernel'] + params[f'dense_{i}']['bias']
        if i < layers - 1:
            x = gelu(x)
            if norm := params.get(f'layer_norm_{i}'):
                centred = x - x.mean(axis=-1, keepdims=True)
                scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
                x = centred / scale * norm['scale'] + norm['bias']
    return x


def qs(params, states, actions):
    """(critics, b)."""
    tree = params['critic']['mlp']
    count = len(tree['dense_0']['bias'])
    critics = [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]
    return np.stack([mlp(critic, states, actions)[:, 0] for critic in critics])


def flow(params, states, noise):
    x = noise
    for i in range(STEPS):
        time = np.full((len(x), 1), i / STEPS)
        x = x + mlp(params['bc_flow']['mlp'], states, x, time) / STEPS
    return np.clip(x, -1, 1)


def critic_loss(config, params, fixed, target, batch, draws):
    next_actions = flow(fixed, batch.next_observations, draws.next_action_noise)
    next_qs = qs(target, batch.next_observations, next_actions)
    next_q = next_qs.min(axis=0) if config.q_agg == 'min' else next_qs.mean(axis=0)
    y = batch.rewards + config.discount * batch.masks * next_q
    return np.mean((qs(params, batch.observations, batch.actions) - y) ** 2)


def flow_errors(params, batch, draws):
    time = draws.flow_time
    x = (1 - time) * draws.flow_noise + time * batch.actions
    velocity = mlp(params['bc_flow']['mlp'], batch.observations, x, time)
    return (velocity - (batch.actions - draws.flow_noise)) ** 2


def fbrac(config, params, fixed, target, batch, draws):
    q = qs(fixed, batch.observations, flow(params, batch.observations, draws.policy_noise))
    q = q.mean(axis=0)
    q_loss = -q.mean()
    if config.normalize_q_loss:
        fixed_actions = flow(fixed, batch.observations, draws.policy_noise)
        q_loss /= np.abs(qs(fixed, batch.observations, fixed_actions).mean(axis=0)).mean()
    bc_flow = flow_errors(params, batch, draws).mean()
    critic = critic_loss(config, params, fixed, target, batch, draws)
    return critic + q_loss + config.alpha * bc_flow


def fawac(config, params, fixed, target, batch, draws):
    own = flow(fixed, batch.observations, draws.policy_noise)
    advantage = qs(fixed, batch.observations, batch.actions) - qs(fixed, batch.observations, own)
    weight = np.minimum(np.exp(config.beta * advantage.mean(axis=0)), 100)
    actor = (weight * flow_errors(params, batch, draws).mean(axis=1)).mean()
    return critic_loss(config, params, fixed, target, batch, draws) + actor


def one_step(params, states, noise):
    return mlp(params['one_step_policy']['mlp'], states, noise)


def fql(config, params, fixed, target, batch, draws):
    states, next_states, noise = batch.observations, batch.next_observations, draws.policy_noise
    next_noise = draws.next_action_noise.reshape(BATCH, -1, ACTION)
    next_actions = np.empty((BATCH, ACTION))
    for row in range(BATCH):
        same = np.repeat(next_states[row : row + 1], next_noise.shape[1], axis=0)
        choices = np.clip(one_step(fixed, same, next_noise[row]), -1, 1)
        next_actions[row] = choices[np.argmax(qs(fixed, same, choices).mean(axis=0))]
    next_qs = qs(target, next_states, next_actions)
    next_q = next_qs.mean(axis=0) - config.critic_pessimism * next_qs.std(axis=0)
    y = batch.rewards + config.discount * batch.masks * next_q
    critic = np.mean((qs(params, states, batch.actions) - y) ** 2)

    actions = one_step(params, states, noise)
    if config.distillation == 'velocity':
        time = draws.distill_time
        velocity = mlp(fixed['bc_flow']['mlp'], states, (1 - time) * noise + time * actions, time)
        distill = np.mean((actions - noise - velocity) ** 2)
    else:
        distill = np.mean((actions - flow(fixed, states, noise)) ** 2)
    q_loss = -qs(fixed, states, np.clip(actions, -1, 1)).mean()
    return critic + flow_errors(params, batch, draws).mean() + config.alpha * distill + q_loss


LOSSES = {FBRAC: fbrac, FAWAC: fawac, FQL: fql}


def random_like(rng, tree):
    return jax.tree.map(lambda leaf: 0.4 * rng.normal(size=leaf.shape), tree)


@pytest.fixture(params=AGENTS)
def case(request):
    """An agent, parameters, target parameters, a batch and draws, all float64."""
    agent, rng = AGENTS[request.param], np.random.default_rng(0)
    shapes = jax.eval_shape(agent.init_params, jax.random.key(0))
    params, other = random_like(rng, shapes), random_like(rng, shapes)
    batch = Batch(
        observations=rng.normal(size=(BATCH, STATE)),
        actions=rng.uniform(-1, 1, (BATCH, ACTION)),
        rewards=rng.normal(size=BATCH),
        masks=np.array([1.0, 1, 0, 1, 1, 1]),
        next_observations=rng.normal(size=(BATCH, STATE)),
    )
    candidates = getattr(agent.config, 'target_candidates', 1)
    draws = FlowDraws(
        next_action_noise=rng.normal(
            size=(BATCH, ACTION) if candidates == 1 else (BATCH, candidates, ACTION)
        ),
        flow_noise=rng.normal(size=(BATCH, ACTION)),
        flow_time=rng.uniform(size=(BATCH, 1)),
        policy_noise=rng.normal(size=(BATCH, ACTION)),
    )
    if getattr(agent.config, 'distillation', '') == 'velocity':
        draws = draws._replace(distill_time=rng.uniform(size=(BATCH, 1)))
    return agent, params, agent.averaged(other), batch, draws


def gradient_of(agent, params, target, batch, draws):
    """Our gradient, and the loss."""
    learner = Learner(agent, make_optimizer(1e-3, agent.config.encoder))
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, target, batch, draws))
    state = dataclasses.replace(learner.init(0), params=single[0], target_params=single[1])
    with jax.default_matmul_precision('highest'):
        grads, metrics = jax.jit(learner.gradient)(state, single[2], single[3])
    return jax.tree.map(np.asarray, grads), {name: float(x) for name, x in metrics.items()}


def test_the_loss(case):
    agent, params, target, batch, draws = case
    _, metrics = gradient_of(agent, params, target, batch, draws)
    expected = LOSSES[type(agent)](agent.config, params, params, target, batch, draws)
    assert metrics['loss'] == pytest.approx(expected, rel=2e-5)
    if isinstance(agent, FAWAC) and agent.config.beta > 10:
        assert 1 < metrics['actor/weight_mean'] <= MAX_WEIGHT  # Some are clipped.


def test_the_gradient_along_random_directions(case):
    """Through all Euler steps for FBRAC; through none for the others."""
    agent, params, target, batch, draws = case
    grads, _ = gradient_of(agent, params, target, batch, draws)
    rng = np.random.default_rng(1)
    for head in agent.heads:
        for _ in range(3):
            direction = jax.tree.map(np.zeros_like, params)
            direction[head] = random_like(rng, params[head])

            def loss(size, direction=direction):
                moved = jax.tree.map(lambda p, d: p + size * d, params, direction)
                return LOSSES[type(agent)](agent.config, moved, params, target, batch, draws)

            expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
            products = jax.tree.map(lambda g, d: np.sum(g * d), grads, direction)
            assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=2e-4, abs=1e-5)


@pytest.fixture
def tiny_encoder(monkeypatch):
    """In place of `impala_debug`; convolutions take most of the time to compile."""
    encoder = ImpalaEncoder(stack_sizes=(), hidden_dims=(8,))
    monkeypatch.setitem(ENCODERS, 'impala_debug', encoder)
    return encoder


@pytest.mark.usefixtures('tiny_encoder')
@pytest.mark.parametrize('kind', [pytest.param('fql', marks=pytest.mark.long), 'qc'])
def test_in_the_target_the_online_critics_choose_with_encoders_of_their_own(kind):
    """With separate encoders; the target critics, which evaluate, have other latents."""
    encoder = EncoderConfig('impala_debug', 'separate')
    spec = Spec((8, 8, 3), ACTION)
    if kind == 'fql':
        agent = FQL(FQLConfig(**COMMON, target_candidates=CANDIDATES, encoder=encoder), spec)
    else:
        config = QCConfig(**COMMON, num_samples=CANDIDATES, horizon=1, encoder=encoder)
        agent = QC(config, spec)
    rng = np.random.default_rng(0)
    params, other = (agent.init_params(jax.random.key(seed)) for seed in (0, 1))
    target = agent.averaged(other)
    images = rng.random((2, BATCH, 8, 8, 3), np.float32)
    actions = rng.uniform(-1, 1, (BATCH, ACTION)).astype(np.float32)
    batch = Batch(images[0], actions, np.ones(BATCH), np.ones(BATCH), images[1])
    draws = agent.sample_draws(jax.random.key(1), batch)
    _, metrics = agent.loss(params, target, batch, draws, jnp.int32(0))

    policy = 'one_step_policy' if kind == 'fql' else 'bc_flow'
    encode = agent.encoding.encode
    chosen, wrong = (
        agent.choose(
            params,
            encode(params, policy, batch.next_observations),
            encode(of, 'critic', batch.next_observations),
            draws.next_action_noise,
        )
        for of in (params, target)
    )
    assert not np.allclose(chosen, wrong), 'the choice does not depend on the encoder'
    latents = encode(target, 'critic', batch.next_observations)
    target_qs = agent.qs(target, latents, chosen).mean(axis=0)
    y = batch.rewards + agent.config.discount * target_qs
    qs = agent.qs(params, encode(params, 'critic', batch.observations), actions)
    np.testing.assert_allclose(metrics['critic/loss'], np.mean((qs - y) ** 2), rtol=1e-4)


@pytest.mark.parametrize('sharing', ['shared', 'separate'])
def test_of_candidates_the_critics_best_acts(sharing, tiny_encoder):
    config = FQLConfig(
        **COMMON, candidates=CANDIDATES, encoder=EncoderConfig('impala_debug', sharing)
    )
    agent = FQL(config, Spec((8, 8, 3), ACTION))
    alone = FQL(dataclasses.replace(config, candidates=1), agent.spec)
    params = agent.init_params(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 8, 8, 3), np.float32)
    noise = rng.normal(size=(BATCH, *agent.noise_shape)).astype(np.float32)
    taken = np.asarray(agent.act(params, images, noise, 'one_step'))[:, 0]
    each = np.stack(
        [alone.act(params, images, noise[:, i], 'one_step')[:, 0] for i in range(CANDIDATES)]
    )
    critics = params['encoders']['shared' if sharing == 'shared' else 'critic']
    latents = tiny_encoder.apply({'params': critics}, images)
    values = np.stack([agent.qs(params, latents, actions).mean(axis=0) for actions in each])
    best = values.argmax(axis=0)
    assert len(set(best.tolist())) > 1
    np.testing.assert_allclose(taken, each[best, np.arange(BATCH)], rtol=1e-5, atol=1e-6)
