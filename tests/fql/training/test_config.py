"""Configurations as JSON, and what may differ when a run is resumed."""

import dataclasses
import json
from pathlib import Path

import pytest

from fql.errors import FQLError
from fql.training.config import (
    AgentConfig,
    AugmentationConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    differing_fields,
    validate_config,
)

CONFIG = TrainConfig(
    task='t',
    agent=AgentConfig(hidden_dims=(3, 4), alpha=7.5),
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
        (lambda v: v.pop('agent'), 'no field agent'),
        (lambda v: v.pop('augmentation'), 'no field augmentation'),
        (lambda v: v['augmentation'].pop('hue'), 'no field hue'),
        (lambda v: v['augmentation'].update(hoe=1), 'unknown field hoe'),
    ],
)
def test_a_foreign_file_is_refused_by_field(change, message):
    values = config_to_dict(CONFIG)
    change(values)
    with pytest.raises(FQLError, match=message):
        config_from_dict(values, Path('config.json'))


def test_differing_fields_are_named_and_resumable_ones_are_not():
    other = dataclasses.replace(
        CONFIG,
        steps=9,
        data_dir='/x',
        batch_size=8,
        agent=AgentConfig(hidden_dims=(3, 4), alpha=1),
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
        {'agent': AgentConfig(hidden_dims=())},
        {'agent': AgentConfig(lr=0)},
        {'agent': AgentConfig(discount=1.1)},
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
