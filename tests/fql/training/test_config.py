"""Configurations as JSON, and what may differ when a run is resumed."""

import dataclasses
import json
from pathlib import Path

import pytest

from fql.agents.configs import AGENT_CONFIGS, EncoderConfig, FQLConfig, IQLConfig
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
    'change',
    [
        {'steps': 0},
        {'batch_size': 0},
        {'frame_stack': 0},
        {'shift_probability': 1.5},
        {'eval_interval': -1},
        {'eval_episodes': 0},
        {'seed': -1},
        {'agent': FQLConfig(hidden_dims=())},
        {'agent': FQLConfig(lr=0)},
        {'agent': FQLConfig(lr=float('inf'))},
        {'agent': FQLConfig(alpha=float('nan'))},
        {'agent': FQLConfig(hidden_dims=(10**20,))},
        {'agent': IQLConfig(expectile=1.5)},
        {'agent': FQLConfig(discount=1.1)},
        {'augmentation': AugmentationConfig(brightness=-0.1)},
        {'augmentation': AugmentationConfig(contrast=1.1)},
        {'augmentation': AugmentationConfig(saturation=float('nan'))},
        {'augmentation': AugmentationConfig(hue=0.6)},
        {'augmentation': AugmentationConfig(grayscale_probability=2)},
        {'augmentation': AugmentationConfig(blur_probability=-1)},
        {'augmentation': AugmentationConfig(cutout_probability=1.5)},
    ],
)
def test_senseless_values_are_refused(change):
    validate_config(CONFIG)
    with pytest.raises(FQLError):
        validate_config(dataclasses.replace(CONFIG, **change))


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
