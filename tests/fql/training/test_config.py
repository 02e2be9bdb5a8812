"""Configurations as JSON, and what may differ when a run is resumed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig
from fql.errors import FQLError
from fql.training.config import (
    BOUNDS,
    AugmentationConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    differing_fields,
    validate_config,
)
from fql.training.pretrain_config import PretrainConfig

CONFIG = TrainConfig(
    task='t',
    agent=FQLConfig(hidden_dims=(3, 4), alpha=7.5),
    augmentation=AugmentationConfig(hue=0.1),
)


def to_json(config):
    return json.loads(json.dumps(config_to_dict(config)))


@pytest.mark.parametrize('name', AGENT_CONFIGS)
def test_json_round_trip(name):
    agent = AGENT_CONFIGS[name](
        hidden_dims=(3, 4), lr=0.25, encoder=EncoderConfig(mode='frozen', source='/e')
    )
    for config in (CONFIG, dataclasses.replace(CONFIG, agent=agent)):
        assert config_from_dict(to_json(config), Path('config.json')) == config
    assert to_json(config)['agent']['name'] == name


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v: v.pop('seed'), 'no field seed'),
        (lambda v: v.update(sede=1), 'unknown field sede'),
        (lambda v: v['agent'].pop('alpha'), 'no field alpha'),
        (lambda v: v.pop('agent'), 'no field agent'),
        (lambda v: v['agent'].pop('name'), 'no field agent with a name that is one of fql, iql'),
        (lambda v: v['agent'].update(name='x'), 'no field agent with a name that is one of fql'),
        (lambda v: v['agent'].update(name='iql'), 'no field actor_loss, const_std, expectile'),
        (lambda v: v['agent']['encoder'].pop('mode'), 'no field encoder.mode'),
        (lambda v: v['agent']['encoder'].update(mode='x'), "encoder.mode must be one of 'scratch'"),
        (lambda v: v['agent'].update(alpha='7'), "alpha must be float, not '7'"),
        (lambda v: v.update(seed=1.5), 'seed must be int, not 1.5'),
        (lambda v: v.pop('augmentation'), 'no field augmentation'),
        (lambda v: v['augmentation'].pop('hue'), 'no field augmentation.hue'),
        (lambda v: v['augmentation'].update(hoe=1), 'unknown field augmentation.hoe'),
    ],
)
def test_a_foreign_file_is_refused_by_field(change, message):
    values = to_json(CONFIG)
    change(values)
    with pytest.raises(FQLError, match=message):
        config_from_dict(values, Path('config.json'))


def test_another_agent_or_encoder_is_named():
    other = dataclasses.replace(
        CONFIG,
        agent=AGENT_CONFIGS['iql'](hidden_dims=(3, 4), encoder=EncoderConfig(source='/e')),
    )
    differing = differing_fields(CONFIG, other)
    assert "agent: stored 'fql', asked 'iql'" in differing
    assert "encoder.from: stored '', asked '/e'" in differing
    assert 'alpha: stored 7.5, asked 10.0' in differing
    assert 'expectile: stored None, asked 0.9' in differing


def test_differing_fields_are_named_and_resumable_ones_are_not():
    other = dataclasses.replace(
        CONFIG,
        steps=9,
        data_dir='/x',
        batch_size=8,
        agent=FQLConfig(hidden_dims=(3, 4), alpha=1),
        augmentation=AugmentationConfig(),
    )
    assert differing_fields(CONFIG, other) == [
        'batch_size: stored 256, asked 8',
        'alpha: stored 7.5, asked 1',
        'hue: stored 0.1, asked 0.0',
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'steps': 0}, 'steps must lie in [1, 2.14748e+09], not 0'),
        ({'batch_size': 0}, 'batch-size must lie in [1, 1.04858e+06], not 0'),
        ({'frame_stack': 0}, 'frame-stack must lie in [1, 64], not 0'),
        ({'shift_probability': 1.5}, 'shift-probability must lie in [0, 1], not 1.5'),
        ({'eval_interval': -1}, 'eval-interval must lie in [0, 2.14748e+09], not -1'),
        ({'eval_episodes': 0}, 'eval-episodes must be at least 1 (eval-interval 0 turns'),
        ({'seed': -1}, 'seed must lie in [0, 2.14748e+09], not -1'),
        ({'agent': FQLConfig(hidden_dims=())}, 'hidden-dims must be one or more widths'),
        ({'agent': FQLConfig(hidden_dims=(8, 0))}, 'hidden-dims must lie in [1, 65536], not 8 0'),
        ({'agent': FQLConfig(lr=0)}, 'lr must lie in [1e-12, 10], not 0'),
        ({'agent': FQLConfig(discount=1.1)}, 'discount must lie in [0, 1], not 1.1'),
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
    validate_config(CONFIG)
    with pytest.raises(FQLError, match=re.escape(message)):
        validate_config(dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize(
    'config',
    [TrainConfig, AugmentationConfig, PretrainConfig, EncoderConfig, *AGENT_CONFIGS.values()],
)
def test_every_number_has_bounds(config):
    """A field without would take any value."""
    for name, kind in get_type_hints(config).items():
        assert kind not in (int, float, tuple[int, ...]) or name in BOUNDS, name
