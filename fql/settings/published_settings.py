"""Published hyperparameters, by agent and dataset.

Sources: the README and the configuration defaults of the FQL repository at commit 719d044 (Park,
Li, Levine 2025), those of the Q-chunking repository at 48283b4 (Li, Zhou, Levine 2025), and, where
said, Table 6 of the FQL paper and the README of Value Flows. Settings that none of them gives are
not tuned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fql.envs.tasks import ANTMAZE_TASKS

FQL = 'FQL README (719d044)'
QC = 'Q-chunking README (48283b4)'
VALUE_FLOWS = 'Value Flows README (817b01a)'
FQL_PAPER = 'FQL paper (arXiv 2502.02538), Table 6'


@dataclass(frozen=True)
class Preset:
    """Published hyperparameters of an agent on a dataset.

    Attributes:
        settings: what differs from the agent's defaults.
        source: where they were published.
    """

    settings: Mapping[str, Any]
    source: str


def _published(
    source: str, agent: str, by_dataset: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], Preset]:
    return {(agent, dataset): Preset(settings, source) for dataset, settings in by_dataset.items()}


_FQL_OGBENCH: dict[str, dict[str, Any]] = {
    'visual-cube-single-play-v0': {'alpha': 300.0},
    'visual-cube-double-play-v0': {'alpha': 100.0},
    'visual-scene-play-v0': {'alpha': 100.0},
    'visual-puzzle-3x3-play-v0': {'alpha': 300.0},
    'visual-puzzle-4x4-play-v0': {'alpha': 300.0},
    'antmaze-large-navigate-v0': {'alpha': 10.0, 'q_agg': 'min'},
    'antmaze-giant-navigate-v0': {'alpha': 10.0, 'q_agg': 'min', 'discount': 0.995},
    'humanoidmaze-medium-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
    'humanoidmaze-large-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
    'antsoccer-arena-navigate-v0': {'alpha': 10.0, 'discount': 0.995},
    'cube-single-play-v0': {'alpha': 300.0},
    'cube-double-play-v0': {'alpha': 300.0},
    'scene-play-v0': {'alpha': 300.0},
    'puzzle-3x3-play-v0': {'alpha': 1000.0},
    'puzzle-4x4-play-v0': {'alpha': 1000.0},
}
_FQL_ANTMAZE: dict[str, dict[str, Any]] = {
    task: {'alpha': 3.0 if 'large' in task else 10.0} for task in ANTMAZE_TASKS
}
_FQL_ADROIT: dict[str, dict[str, Any]] = {
    f'{hand}-{data}-v1': {'alpha': alpha, 'q_agg': 'min'}
    for hand, alphas in {
        'pen': (1e4, 1e4, 3e3),
        'door': (3e4, 3e4, 3e4),
        'hammer': (3e4, 1e4, 3e4),
        'relocate': (1e4, 3e4, 3e4),
    }.items()
    for data, alpha in zip(('human', 'cloned', 'expert'), alphas, strict=True)
}
_HUMANOID = 'humanoidmaze-medium-navigate-v0'
_VISUAL_ANTMAZES = tuple(f'visual-antmaze-{size}-navigate-v0' for size in ('medium', 'teleport'))

PRESETS: dict[tuple[str, str], Preset] = {
    **_published(FQL, 'fql', _FQL_OGBENCH | _FQL_ANTMAZE | _FQL_ADROIT),
    **_published(
        FQL,
        'iql',
        {
            _HUMANOID: {'alpha': 10.0, 'discount': 0.995},
            'visual-cube-single-play-v0': {'alpha': 1.0},
        },
    ),
    **_published(
        FQL,
        'rebrac',
        {
            _HUMANOID: {'alpha_actor': 0.01, 'alpha_critic': 0.01, 'discount': 0.995},
            'visual-cube-single-play-v0': {'alpha_actor': 1.0, 'alpha_critic': 0.0},
        },
    ),
    **_published(
        FQL,
        'ifql',
        {
            _HUMANOID: {'discount': 0.995, 'num_samples': 32},
            'visual-cube-single-play-v0': {'num_samples': 32},
        },
    ),
    **_published(
        FQL_PAPER,
        'iql',
        {
            'visual-cube-double-play-v0': {'alpha': 0.3},
            'visual-scene-play-v0': {'alpha': 10.0},
            'visual-puzzle-3x3-play-v0': {'alpha': 10.0},
            'visual-puzzle-4x4-play-v0': {'alpha': 3.0},
        },
    ),
    **_published(
        FQL_PAPER,
        'rebrac',
        {
            'visual-cube-double-play-v0': {'alpha_actor': 0.1, 'alpha_critic': 0.0},
            'visual-scene-play-v0': {'alpha_actor': 0.1, 'alpha_critic': 0.01},
            'visual-puzzle-3x3-play-v0': {'alpha_actor': 0.3, 'alpha_critic': 0.01},
            'visual-puzzle-4x4-play-v0': {'alpha_actor': 0.3, 'alpha_critic': 0.01},
        },
    ),
    **_published(
        FQL_PAPER,
        'ifql',
        {
            f'visual-{env}-play-v0': {'num_samples': 32}
            for env in ('cube-double', 'scene', 'puzzle-3x3', 'puzzle-4x4')
        },
    ),
    **_published(
        FQL_PAPER,
        'fbrac',
        {
            f'visual-{env}-play-v0': {'alpha': 300.0 if env == 'puzzle-4x4' else 100.0}
            for env in ('cube-single', 'cube-double', 'scene', 'puzzle-3x3', 'puzzle-4x4')
        },
    ),
    **_published(
        VALUE_FLOWS,
        'fql',
        {
            **{dataset: {'alpha': 100.0} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'alpha': 300.0, 'discount': 0.995},
        },
    ),
    **_published(
        VALUE_FLOWS,
        'iql',
        {dataset: {'alpha': 1.0} for dataset in _VISUAL_ANTMAZES},
    ),
    **_published(
        VALUE_FLOWS,
        'rebrac',
        {
            **{
                dataset: {'alpha_actor': 0.01, 'alpha_critic': 0.003}
                for dataset in _VISUAL_ANTMAZES
            },
            'cube-triple-play-v0': {
                'alpha_actor': 0.03,
                'alpha_critic': 0.0,
                'discount': 0.995,
            },
        },
    ),
    **_published(
        VALUE_FLOWS,
        'ifql',
        {
            **{dataset: {'num_samples': 32} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'num_samples': 32, 'discount': 0.995},
        },
    ),
    **_published(
        VALUE_FLOWS,
        'fbrac',
        {
            **{dataset: {'alpha': 100.0} for dataset in _VISUAL_ANTMAZES},
            'cube-triple-play-v0': {'alpha': 100.0, 'discount': 0.995},
        },
    ),
    **_published(QC, 'qc_fql', {'cube-triple-play-v0': {'alpha': 100.0}}),
    **_published(QC, 'qc', {'cube-triple-play-v0': {'num_samples': 32}}),
}
"""By agent and dataset."""

ONLINE_PRESETS: dict[tuple[str, str], Preset] = {
    **_published(
        FQL,
        'fql',
        {
            _HUMANOID: {'alpha': 100.0, 'discount': 0.995},
            'antsoccer-arena-navigate-v0': {'alpha': 30.0, 'discount': 0.995},
            'cube-double-play-v0': {'alpha': 300.0},
            'scene-play-v0': {'alpha': 300.0},
            'puzzle-4x4-play-v0': {'alpha': 1000.0},
            **_FQL_ANTMAZE,
            'pen-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'door-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'hammer-cloned-v1': {'alpha': 1e3, 'q_agg': 'min'},
            'relocate-cloned-v1': {'alpha': 1e4, 'q_agg': 'min'},
        },
    ),
    **{(agent, _HUMANOID): PRESETS[agent, _HUMANOID] for agent in ('iql', 'rebrac', 'ifql')},
    **_published(FQL, 'sac', {_HUMANOID: {'discount': 0.995}}),
}
"""The same for runs that go on online; for OGBench, tuned on the default task."""
