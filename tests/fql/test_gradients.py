"""Which encoder each part of each agent's loss reads, and the parameters that it trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.impala import ENCODERS, ImpalaEncoder
from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig, IQLConfig, Spec
from fql.agents.registry import AGENTS, make_agent
from fql.batch import Batch
from fql.learner import Learner, make_optimizer

ACTION_DIM, BATCH = 3, 4
SPEC = Spec((8, 8, 3), ACTION_DIM)
SMALL = {
    'hidden_dims': (8,),
    'encoder': EncoderConfig(size='impala_debug'),
}
FLOW = {'critic/loss': 'critic', 'actor/bc_flow_loss': 'bc_flow'}
FQL = {**FLOW, 'actor/distill_loss': 'one_step_policy', 'actor/q_loss': 'one_step_policy'}
IMPLICIT = {'value/loss': 'value', 'critic/loss': 'critic'}

HEADS = {
    'fql': FQL,
    'iql': {**IMPLICIT, 'actor/loss': 'actor'},
    'rebrac': {'critic/loss': 'critic', 'actor/q_loss': 'actor', 'actor/bc_loss': 'actor'},
    'ifql': {**IMPLICIT, 'actor/bc_flow_loss': 'bc_flow'},
    'fbrac': {**FLOW, 'actor/q_loss': 'bc_flow'},
    'fawac': {'critic/loss': 'critic', 'actor/loss': 'bc_flow'},
    'bc': {'actor/bc_flow_loss': 'bc_flow'},
    'sac': {'critic/loss': 'critic', 'actor/loss': 'actor'},
    'qc_fql': FQL,
    'qc': FLOW,
}
"""The one head that each part of the loss trains."""

SHARED_ENCODER = {'critic/loss', 'value/loss', 'actor/bc_flow_loss'}
"""The parts that train a shared encoder; FAWAC's weighted flow matching does too."""


@pytest.fixture(autouse=True, scope='module')
def small_encoder():
    """No convolutions: they are tested elsewhere, and take most of the time to compile."""
    with pytest.MonkeyPatch.context() as patch:
        encoder = ImpalaEncoder(stack_sizes=(), hidden_dims=(8,))
        patch.setitem(ENCODERS, 'impala_debug', encoder)
        yield


def small(name, sharing='shared', **settings):
    config = AGENT_CONFIGS[name](**SMALL, **settings)
    fields = {field.name for field in dataclasses.fields(config)}
    quick = {'flow_steps': 2, 'num_samples': 2, 'horizon': 2, 'alpha_actor': 1.0}
    quick = {name: value for name, value in quick.items() if name in fields}
    encoder = dataclasses.replace(config.encoder, sharing=sharing)
    return dataclasses.replace(config, encoder=encoder, **quick)


@functools.cache
def make(config):
    agent = make_agent(config, SPEC)
    learner = Learner(agent, make_optimizer(config.lr, config.encoder))
    rng = np.random.default_rng(0)
    steps = () if agent.horizon == 1 else (agent.horizon,)

    def images():
        return jnp.asarray(rng.uniform(size=(BATCH, 8, 8, 3)), jnp.float32)

    def actions(*steps):
        return jnp.asarray(rng.uniform(-1, 1, (BATCH, *steps, ACTION_DIM)), jnp.float32)

    def column(*values):
        rows = jnp.asarray(values)
        return jnp.broadcast_to(rows[:, None], (BATCH, *steps)) if steps else rows

    batch = Batch(
        observations=images(),
        actions=actions(*steps),
        rewards=column(-1.0, -1.0, 0.0, -1.0),
        masks=column(1.0, 1.0, 0.0, 1.0),
        next_observations=images(),
        valid=jnp.ones((BATCH, *steps)) if steps else None,
        next_actions=actions(),
        next_actions_valid=jnp.asarray([1.0, 0.0, 1.0, 1.0]),
    )
    return learner, batch, jax.jit(lambda: learner.init(0))()


@functools.cache
def jit_update(config):
    learner = make(config)[0]
    return jax.jit(lambda state, batch: learner.update(state, batch))


@functools.cache
def trained_parts(config):
    """For each part of the loss, the parameters with a gradient other than zero."""
    learner, batch, state = make(config)
    draws = learner.draws(state, batch)

    def losses(params):
        _, metrics = learner.agent.loss(params, state.target_params, batch, draws, jnp.asarray(1))
        return {name: metrics[name] for name in metrics if name.endswith('loss')}

    # Not compiled: operations are shared by all agents, whole losses are not.
    values, pull = jax.vjp(losses, state.params)
    zeros = jax.tree.map(jnp.zeros_like, values)
    found = {}
    for loss in values:
        (grads,) = pull({**zeros, loss: jnp.ones(())})
        parts = {f'encoder:{name}': tree for name, tree in grads['encoders'].items()}
        parts |= {name: tree for name, tree in grads.items() if name != 'encoders'}
        found[loss] = {
            name
            for name, tree in parts.items()
            if any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(tree))
        }
    return found


def quick_or_long(name):
    """One agent for `make test`, the others for `make test-all`."""
    return name if name == 'fql' else pytest.param(name, marks=pytest.mark.long)


def test_every_agent_is_here():
    assert HEADS.keys() == AGENTS.keys() == AGENT_CONFIGS.keys()


@pytest.mark.parametrize('name', HEADS)
def test_each_part_of_the_loss_trains_its_head_and_perhaps_the_shared_encoder(name):
    parts = trained_parts(small(name))
    for loss, head in HEADS[name].items():
        reaches = loss in SHARED_ENCODER or (name, loss) == ('fawac', 'actor/loss')
        assert parts[loss] == {head, *(['encoder:shared'] if reaches else [])}, loss


@pytest.mark.parametrize('name', HEADS)
def test_with_separate_encoders_each_part_trains_its_own(name):
    parts = trained_parts(small(name, sharing='separate'))
    for loss, head in HEADS[name].items():
        assert parts[loss] == {head, f'encoder:{head}'}, loss


@pytest.mark.parametrize('name', [n for n in HEADS if 'bc_flow' in HEADS[n].values() and n != 'bc'])
def test_flow_matching_can_be_kept_from_the_shared_encoder(name):
    parts = trained_parts(small(name, bc_flow_trains_encoder=False))
    loss = 'actor/loss' if name == 'fawac' else 'actor/bc_flow_loss'
    assert parts[loss] == {'bc_flow'}
    assert parts['critic/loss'] == {'critic', 'encoder:shared'}


def encode(agent, params, images):
    """By the one encoder that these parameters hold."""
    return agent.encoder.apply({'params': params['encoders']['shared']}, images)


def other_target(agent):
    """Target parameters that differ from fresh ones in every leaf."""
    fresh = agent.init_params(jax.random.key(1))
    return jax.tree.map(lambda x: 1.1 * x + 0.05, agent.averaged(fresh))


@pytest.mark.parametrize('name', [name for name in HEADS if name != 'bc'])
def test_at_the_next_observation_every_head_reads_the_averaged_encoder(name):
    """The losses are those of the agent on states, where the right encoders' latents are these."""
    config = small(name)
    learner, batch, state = make(config)
    agent, params, draws = learner.agent, state.params, learner.draws(state, batch)
    target = other_target(agent)
    _, metrics = agent.loss(params, target, batch, draws, jnp.asarray(1))

    def on_states(next_encoder):
        latents = encode(agent, params, batch.observations)
        states = batch._replace(
            observations=latents,
            next_observations=encode(agent, next_encoder, batch.next_observations),
        )
        bare = [{**tree, 'encoders': {}} for tree in (params, target)]
        twin = make_agent(config, Spec(latents.shape[1:], ACTION_DIM))
        return twin.loss(*bare, states, draws, jnp.asarray(1))[1]

    expected = on_states(target)
    for metric in metrics.keys() - {'value/loss'}:  # See below.
        np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-4, err_msg=metric)
    assert abs(on_states(params)['critic/loss'] / metrics['critic/loss'] - 1) > 0.01


@pytest.mark.parametrize('name', ['iql', 'ifql'])
def test_a_value_regresses_to_what_target_critics_read_of_their_own_encoder(name):
    learner, batch, state = make(small(name))
    agent, params, draws = learner.agent, state.params, learner.draws(state, batch)
    target = other_target(agent)
    _, metrics = agent.loss(params, target, batch, draws, jnp.asarray(1))
    v = agent.apply(params, 'value', encode(agent, params, batch.observations))

    def value_loss(encoder):
        latents = encode(agent, encoder, batch.observations)
        difference = agent.qs(target, latents, batch.actions).min(axis=0) - v
        return np.mean(np.where(difference >= 0, 0.9, 0.1) * difference**2)

    np.testing.assert_allclose(metrics['value/loss'], value_loss(target), rtol=1e-4)
    assert abs(value_loss(params) / metrics['value/loss'] - 1) > 0.01


@pytest.mark.parametrize('const_std', [True, False])
def test_ddpgbc_trains_the_actor_alone(const_std):
    config = small('iql', actor_loss='ddpgbc', const_std=const_std)
    parts = trained_parts(config)
    assert isinstance(config, IQLConfig)
    assert parts['actor/q_loss'] == parts['actor/bc_loss'] == {'actor'}


def test_the_temperature_has_a_loss_of_its_own():
    parts = trained_parts(small('sac'))
    assert parts['actor/alpha_loss'] == {'alpha'}
    assert 'alpha' not in parts['actor/loss'] | parts['critic/loss']


@pytest.mark.parametrize('sharing', ['shared', pytest.param('separate', marks=pytest.mark.long)])
@pytest.mark.parametrize(
    'name', [quick_or_long(name) for name in HEADS if name not in ('bc', 'rebrac')]
)
def test_the_target_follows_the_critic_before_the_step(name, sharing):
    config = small(name, sharing)
    _, batch, state = make(config)
    zero = jax.tree.map(jnp.zeros_like, state.target_params)
    new_state, _ = jit_update(config)(dataclasses.replace(state, target_params=zero), batch)
    encoder = 'shared' if sharing == 'shared' else 'critic'
    assert new_state.target_params['encoders'].keys() == {encoder}
    for target, source in [
        (new_state.target_params['critic'], state.params['critic']),
        (new_state.target_params['encoders'][encoder], state.params['encoders'][encoder]),
    ]:
        jax.tree.map(
            lambda t, s: np.testing.assert_allclose(t, config.tau * s, rtol=1e-6), target, source
        )
    assert int(new_state.step) == 1


@pytest.mark.long
def test_rebrac_moves_its_targets_in_full_updates_only():
    config = small('rebrac', as_published=False)
    _, batch, state = make(config)
    once, _ = jit_update(config)(state, batch)
    jax.tree.map(np.testing.assert_array_equal, once.target_params, state.target_params)
    jax.tree.map(np.testing.assert_array_equal, once.params['actor'], state.params['actor'])
    twice, _ = jit_update(config)(once, batch)
    third, _ = jit_update(config)(twice, batch)
    kernel = lambda state: np.asarray(state.params['actor']['mean']['kernel'])  # noqa: E731
    assert twice.target_params['actor'] is not None
    assert (kernel(twice) != kernel(once)).any()
    # Adam's moments continue to move the actor without a gradient.
    assert (kernel(third) != kernel(twice)).any()


def test_rebrac_has_no_penalty_where_the_next_action_is_another_trajectorys():
    config = small('rebrac', alpha_critic=1.0)
    learner, batch, state = make(config)
    draws = learner.draws(state, batch)

    def target_effect(next_actions, config):
        agent = make_agent(config, SPEC)
        changed = batch._replace(next_actions=next_actions)
        return agent.loss(state.params, state.target_params, changed, draws, state.step)[0]

    other = batch.next_actions.at[1].add(0.5)  # Row 1 is the last of its trajectory.
    published = dataclasses.replace(config, as_published=True)
    assert target_effect(other, config) == target_effect(batch.next_actions, config)
    assert target_effect(other, published) != target_effect(batch.next_actions, published)


def test_draws_depend_on_the_step_alone():
    config = small('fql')
    assert isinstance(config, FQLConfig)
    _, batch, state = make(config)
    compiled = jit_update(config)
    once, _ = compiled(state, batch)
    again, _ = compiled(state, batch)
    later, _ = compiled(dataclasses.replace(state, step=state.step + 1), batch)
    equal = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), once.params, again.params)
    assert all(jax.tree.leaves(equal))
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), once.params, later.params)
    assert not all(jax.tree.leaves(same))
