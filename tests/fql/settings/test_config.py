"""Configurations as JSON, and the settings that may differ when a run is resumed."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig, IQLConfig
from fql.augmentation_config import AugmentationConfig
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.settings.bounds import BOUNDS
from fql.settings.presets import default_config
from fql.settings.train_config import (
    OnlineConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    differing_fields,
    validate_config,
    with_settings,
)

CONFIG = TrainConfig(
    task='t',
    agent=FQLConfig(hidden_dims=(3, 4), alpha=7.5),
    augmentation=AugmentationConfig(hue=0.1),
)


def test_json_round_trip():
    values = json.loads(json.dumps(config_to_dict(CONFIG)))
    assert config_from_dict(values, Path('config.json')) == CONFIG


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v: v.pop('seed'), 'no field seed'),
        (lambda v: v.update(sede=1), 'unknown field sede'),
        (lambda v: v['agent'].pop('alpha'), 'no field alpha'),
        (lambda v: v['agent'].pop('name'), 'no field agent with a name'),
        (lambda v: v['agent'].update(name='xql'), 'fql, iql'),
        (lambda v: v['agent'].update(expectile=0.9), 'unknown field expectile'),
        (lambda v: v['agent']['encoder'].pop('size'), 'no field encoder.size'),
        (lambda v: v['agent'].update(q_agg='median'), 'q_agg must be one of'),
        (lambda v: v.update(seed='1'), 'seed must be int'),
        (lambda v: v.update(seed=True), 'seed must be int'),
        (lambda v: v['agent'].update(hidden_dims=[3, 'x']), r'hidden_dims\[1\] must be int'),
        (lambda v: v.pop('agent'), 'no field agent'),
        (lambda v: v.pop('augmentation'), 'no field augmentation'),
        (lambda v: v['augmentation'].pop('hue'), 'no field augmentation.hue'),
        (lambda v: v['augmentation'].update(hoe=1), 'unknown field augmentation.hoe'),
    ],
)
def test_a_foreign_file_is_refused_by_field(change, message):
    values = json.loads(json.dumps(config_to_dict(CONFIG)))
    change(values)
    with pytest.raises(FQLError, match=message):
        config_from_dict(values, Path('config.json'))


def test_differing_fields_are_named_and_resumable_ones_are_not():
    other = dataclasses.replace(
        CONFIG,
        steps=9,
        data_dir='/x',
        eval_interval=7,
        batch_size=8,
        agent=FQLConfig(hidden_dims=(3, 4), alpha=1),
        augmentation=AugmentationConfig(),
    )
    assert differing_fields(CONFIG, other) == [
        'batch_size: stored 256, asked 8',
        'alpha: stored 7.5, asked 1',
        'hue: stored 0.1, asked 0.0',
    ]


def test_an_alpha_that_is_given_holds_in_the_online_phase_too():
    """Where the published settings have another one online."""
    config = default_config(find_task('humanoidmaze-medium-navigate-singletask-task1-v0'))
    assert (config.agent.alpha, config.online.alpha) == (30, 100)
    for settings, alpha in (({}, 100), ({'alpha': 5.0}, None)):
        assert with_settings(config, settings).online.alpha == alpha
    both = with_settings(config, {'alpha': 5.0, 'online.alpha': 7.0, 'online-steps': 9})
    assert (both.agent.alpha, both.online.alpha) == (5, 7)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'steps': 0}, 'steps must be at least 1, unless --online-steps is given'),
        ({'batch_size': 0}, 'batch-size must lie in [1, 1048576], not 0'),
        ({'frame_stack': 0}, 'frame-stack must lie in [1, 64], not 0'),
        ({'shift_probability': 1.5}, 'shift-probability must lie in [0, 1], not 1.5'),
        ({'eval_interval': -1}, 'eval-interval must lie in [0, 2147483647], not -1'),
        ({'eval_episodes': 0}, 'eval-episodes must be at least 1 (eval-interval 0 turns'),
        ({'seed': -1}, 'seed must lie in [0, 2147483647], not -1'),
        *(
            ({'agent': agent}, message)
            for agent, message in [
                (FQLConfig(hidden_dims=()), 'hidden-dims must be one or more widths'),
                (FQLConfig(hidden_dims=(8, 0)), 'hidden-dims must lie in [1, 65536], not 8 0'),
                (FQLConfig(hidden_dims=(10**20,)), 'hidden-dims must lie in [1, 65536], not 1e+20'),
                (FQLConfig(lr=0), 'lr must lie in [1e-12, 10], not 0'),
                (FQLConfig(lr=float('inf')), 'lr must lie in [1e-12, 10], not inf'),
                (FQLConfig(alpha=float('nan')), 'alpha must lie in [0, 1e+09], not nan'),
                (FQLConfig(discount=1.1), 'discount must lie in [0, 1], not 1.1'),
                (IQLConfig(expectile=1.5), 'expectile must lie in [0, 1], not 1.5'),
                (
                    FQLConfig(num_critics=1, critic_pessimism=0.5),
                    'critic-pessimism needs --num-critics of at least 2',
                ),
            ]
        ),
        *(
            ({'augmentation': AugmentationConfig(**{name: value})}, message)
            for name, value, message in [
                ('brightness', -0.1, 'brightness must lie in [0, 1], not -0.1'),
                ('contrast', 1.1, 'contrast must lie in [0, 1], not 1.1'),
                ('saturation', float('nan'), 'saturation must lie in [0, 1], not nan'),
                ('hue', 0.6, 'hue must lie in [0, 0.5], not 0.6'),
                ('grayscale_probability', 2, 'grayscale-probability must lie in [0, 1], not 2'),
                ('blur_probability', -1, 'blur-probability must lie in [0, 1], not -1'),
                ('cutout_probability', 1.5, 'cutout-probability must lie in [0, 1], not 1.5'),
            ]
        ),
    ],
)
def test_senseless_values_are_refused(change, message):
    """The message names the flag and the allowed values."""
    validate_config(CONFIG)
    with pytest.raises(FQLError, match=re.escape(message)):
        validate_config(dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize(
    ('online', 'agent', 'message'),
    [
        ({'exploration': 'ucb'}, {'num_critics': 1}, 'ucb needs --num-critics of at least 2'),
        ({'ucb_beta': 2.0}, {}, 'ucb-candidates and ucb-beta need --exploration ucb'),
        ({'ucb_candidates': 8}, {}, 'ucb-candidates and ucb-beta need --exploration ucb'),
        (
            {'encoder_lr_multiplier': 0.1},
            {'encoder': EncoderConfig(mode='frozen', source='/e')},
            'online.encoder-lr-multiplier is without effect on a frozen encoder',
        ),
        ({'offline_ratio': 0.003}, {}, 'offline-ratio 0.003 is no row of a batch of 256'),
        ({'offline_ratio': float('nan')}, {}, 'offline-ratio must be uniform or lie in [0, 1]'),
    ],
)
def test_what_would_be_without_effect_online_is_refused(online, agent, message):
    config = dataclasses.replace(
        CONFIG, online=OnlineConfig(online_steps=9, **online), agent=FQLConfig(**agent)
    )
    with pytest.raises(FQLError, match=re.escape(message)):
        validate_config(config)


@pytest.mark.parametrize(
    ('online', 'agent'),
    [
        ({'exploration': 'ucb', 'ucb_beta': 2.0, 'ucb_candidates': 8}, {'num_critics': 2}),
        ({'encoder_lr_multiplier': 0.1}, {'num_critics': 1}),
        ({'offline_ratio': 0.0}, {}),
        ({'offline_ratio': 1 / 256}, {}),
        ({'offline_ratio': 1.0}, {'num_critics': 2, 'critic_pessimism': 0.5}),
    ],
)
def test_what_has_an_effect_online_is_taken(online, agent):
    online_config = OnlineConfig(online_steps=9, **online)
    validate_config(dataclasses.replace(CONFIG, online=online_config, agent=FQLConfig(**agent)))


def test_agents_differ_by_name_and_by_their_own_settings():
    other = dataclasses.replace(CONFIG, agent=IQLConfig(hidden_dims=(3, 4), alpha=7.5))
    differences = differing_fields(CONFIG, other)
    assert differences[0] == "agent: stored 'fql', asked 'iql'"
    assert 'expectile: stored None, asked 0.9' in differences
    encoder = EncoderConfig(size='impala', source='/e')
    other = dataclasses.replace(CONFIG, agent=dataclasses.replace(CONFIG.agent, encoder=encoder))
    assert differing_fields(CONFIG, other) == [
        "encoder.size: stored 'impala_small', asked 'impala'",
        "encoder.from: stored '', asked '/e'",
    ]


@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_every_number_has_bounds(name):
    config = dataclasses.replace(CONFIG, agent=AGENT_CONFIGS[name]())
    for part in (config, config.agent, config.agent.encoder, config.augmentation):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if type(value) in (int, float) or (isinstance(value, tuple) and value):
                assert field.name in BOUNDS, field.name
    values = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(values, Path('config.json')) == config
