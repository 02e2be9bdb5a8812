"""Saved encoders: frozen ones that no update changes, and fine-tuned ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders.impala import ENCODERS
from fql.agents.base import Agent
from fql.agents.configs import EncoderConfig, FQLConfig, Spec
from fql.agents.registry import make_agent
from fql.batch import Batch
from fql.errors import FQLError
from fql.learner import Learner, make_optimizer
from fql.policies.policy import make_act
from fql.settings.train_config import TrainConfig, validate_config

BATCH, IMAGE, WIDTH, ACTIONS = 8, (16, 16, 9), 512, 2
SPEC = Spec(IMAGE, ACTIONS)
SCRATCH = FQLConfig(hidden_dims=(8,), flow_steps=1, encoder=EncoderConfig(size='impala_debug'))


def with_encoder(config, **changes):
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **changes))


FROZEN = with_encoder(SCRATCH, source='/e', mode='frozen')
FINETUNE = with_encoder(FROZEN, mode='finetune')


def make_learner(config):
    return Learner(make_agent(config, SPEC), make_optimizer(config.lr, config.encoder))


def make_batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        observations=jnp.asarray(rng.integers(0, 256, (BATCH, *IMAGE), np.uint8)),
        actions=jnp.asarray(rng.uniform(-1, 1, (BATCH, ACTIONS)), jnp.float32),
        rewards=-jnp.ones(BATCH),
        masks=jnp.ones(BATCH),
        next_observations=jnp.asarray(rng.integers(0, 256, (BATCH, *IMAGE), np.uint8)),
    )


def fill(seed, shapes):
    """A tree of random numbers; fresh parameters would take ten seconds to compile."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape), jnp.float32), shapes)


@pytest.fixture(autouse=True, scope='module')
def quick_parameters():
    real = Agent.init_params

    def fake_init_params(agent, key):
        return fill(0, jax.eval_shape(lambda key: real(agent, key), key))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, 'init_params', fake_init_params)
        yield


@pytest.fixture(scope='module')
def encoder():
    """A saved encoder's parameters, NumPy arrays."""
    images = make_batch().observations[:1]
    shapes = jax.eval_shape(ENCODERS['impala_debug'].init, jax.random.key(0), images)['params']
    return jax.tree.map(np.asarray, fill(99, shapes))


@pytest.fixture(scope='module')
def states(encoder):
    """The state before the first update, by encoder mode."""
    return {
        config.encoder.mode: make_learner(config).init(0, given)
        for config, given in [(FROZEN, encoder), (FINETUNE, encoder), (SCRATCH, None)]
    }


@pytest.fixture(scope='module')
def update_frozen(states):
    """The compiled update of a frozen agent, on images."""
    return lower_update(FROZEN, states['frozen'], make_batch()).compile()


@pytest.fixture(scope='module')
def update_on_latents(states):
    """The same on latents."""
    return lower_update(FROZEN, states['frozen'], on_latents(make_batch())).compile()


@pytest.fixture(scope='module')
def encode(encoder):
    """The compiled encoder."""
    module = make_agent(SCRATCH, SPEC).encoder
    encode = jax.jit(lambda params, images: module.apply({'params': params}, images))
    return encode.lower(encoder, make_batch().observations).compile()


def lower_update(config, state, batch):
    learner = make_learner(config)
    return jax.jit(lambda s, b: learner.update(s, b)).lower(state, batch)


def on_latents(batch, o=None, next_o=None):
    none = jnp.zeros((BATCH, WIDTH))
    return batch._replace(
        observations=none if o is None else o,
        next_observations=none if next_o is None else next_o,
    )


def same_bits(tree, expected) -> bool:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def test_training_changes_not_one_bit_of_a_frozen_encoder(states, encoder, update_frozen):
    state = states['frozen']
    for seed in range(3):
        state, _ = update_frozen(state, make_batch(seed))
    assert same_bits(state.params['encoders'], {'shared': encoder})
    for name in ('critic', 'bc_flow', 'one_step_policy'):
        assert not same_bits(state.params[name], states['frozen'].params[name])


def test_a_frozen_encoder_has_no_optimiser_state_and_no_target(states):
    state = states['frozen']
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert not [path for path in paths if 'encoder' in path]
    heads = len(jax.tree.leaves({**state.params, 'encoders': {}}))
    assert len(paths) == 2 * heads + 1  # two moments, and the count
    assert not jax.tree.leaves(state.target_params['encoders'])


def test_a_frozen_update_has_no_backward_pass_through_the_encoder(
    states, encode, update_frozen, update_on_latents
):
    forward, frozen, heads = (
        compiled.cost_analysis()['flops'] for compiled in (encode, update_frozen, update_on_latents)
    )
    assert heads < forward  # otherwise the comparison would not test the encoder
    assert frozen == pytest.approx(2 * forward + heads, rel=0.02)
    shared = lower_update(SCRATCH, states['scratch'], make_batch()).cost_analysis()['flops']
    assert frozen < 0.75 * shared


def test_latents_in_place_of_images_give_the_same_update(
    states, encoder, encode, update_frozen, update_on_latents
):
    state, batch = states['frozen'], make_batch()
    latents = [encode(encoder, images) for images in (batch.observations, batch.next_observations)]
    from_images, metrics = update_frozen(state, batch)
    from_latents, same_metrics = update_on_latents(state, on_latents(batch, *latents))
    for name, value in metrics.items():
        np.testing.assert_allclose(same_metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        from_latents.params,
        from_images.params,
    )
    _, others = update_on_latents(state, on_latents(batch, *reversed(latents)))
    assert abs(others['loss'] - metrics['loss']) > 1e-4
    # The policy still reads images.
    act, numbers = make_act(make_agent(FROZEN, SPEC)), jnp.arange(BATCH)
    actions = act(state.params, jax.random.key(0), batch.observations, numbers, numbers)
    assert actions.shape == (BATCH, 1, ACTIONS)


def test_latents_are_no_input_of_an_encoder_that_is_trained(states):
    with pytest.raises(AssertionError):
        lower_update(FINETUNE, states['finetune'], on_latents(make_batch()))


@pytest.mark.parametrize('sharing', ['shared', 'separate'])
def test_every_encoder_and_its_target_start_from_the_saved_one(sharing, encoder):
    learner = make_learner(with_encoder(FINETUNE, sharing=sharing))
    state = learner.init(0, encoder)
    names = {'shared'} if sharing == 'shared' else {'critic', 'bc_flow', 'one_step_policy'}
    assert state.params['encoders'].keys() == names
    for tree in [*state.params['encoders'].values(), *state.target_params['encoders'].values()]:
        assert same_bits(tree, encoder)


@pytest.mark.long
def test_an_encoder_is_trained_from_its_unfreeze_step_on(states, encoder):
    config = with_encoder(FINETUNE, unfreeze_step=2)
    state = states['finetune']
    step = lower_update(config, state, make_batch()).compile()
    for _ in range(2):
        state, _ = step(state, make_batch())
    assert same_bits(state.params['encoders'], {'shared': encoder})
    assert not same_bits(state.params['critic'], states['finetune'].params['critic'])
    state, _ = step(state, make_batch())
    assert not same_bits(state.params['encoders'], {'shared': encoder})


PARAMS = {
    'encoders': {'shared': {'kernel': np.ones((2, 3), np.float32)}},
    'critic': {'kernel': np.ones(4, np.float32)},
    'bc_flow': {'kernel': np.ones(4, np.float32)},
    'one_step_policy': {'bias': np.ones(5, np.float32)},
}


def make_grads(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), PARAMS)


def all_updates(optimizer, seeds):
    """The optimiser's updates of the parameters for gradients of these seeds, in sequence."""
    state, added = optimizer.init(PARAMS), []
    for seed in seeds:
        updates, state = optimizer.update(make_grads(seed), state, PARAMS)
        added.append(updates)
    return added


def assert_close(tree, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), tree, expected)


def test_the_encoder_has_its_own_learning_rate_and_begins_late():
    config = with_encoder(FINETUNE, lr_multiplier=0.1, unfreeze_step=2)
    found = all_updates(make_optimizer(config.lr, config.encoder), range(4))
    heads = all_updates(optax.adam(config.lr), range(4))
    # A fresh Adam: its moments and its count begin at update 2.
    late = all_updates(optax.adam(0.1 * config.lr), range(2, 4))
    for i, updates in enumerate(found):
        for name in ('critic', 'bc_flow', 'one_step_policy'):
            assert_close(updates[name], heads[i][name])
        expected = jax.tree.map(np.zeros_like, PARAMS) if i < 2 else late[i - 2]
        assert_close(updates['encoders'], expected['encoders'])


def test_scratch_has_one_adam_over_all_parameters(states):
    state = states['scratch']
    expected = optax.adam(SCRATCH.lr).init(state.params)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'source': '/e'}, 'encoder.from needs'),
        ({'mode': 'frozen'}, 'encoder.mode frozen needs --encoder.from'),
        ({'mode': 'finetune'}, 'encoder.mode finetune needs --encoder.from'),
        (
            {'mode': 'frozen', 'source': '/e', 'sharing': 'separate'},
            'needs --encoder.sharing shared',
        ),
        ({'lr_multiplier': 0.1}, 'need --encoder.mode finetune'),
        ({'unfreeze_step': 5}, 'need --encoder.mode finetune'),
        ({'lr_multiplier': 0.0}, r'encoder.lr-multiplier must lie in \[1e-09, 1000\], not 0'),
        ({'unfreeze_step': -1}, 'encoder.unfreeze-step must lie in'),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    config = TrainConfig(task='t', agent=with_encoder(FQLConfig(), **changes))
    with pytest.raises(FQLError, match=message):
        validate_config(config)
