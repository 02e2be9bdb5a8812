"""Published results, to compare a run's with. Results that are not known here are left out."""

from dataclasses import dataclass

FQL_PAPER = (
    'Park, Li, Levine 2025 (arXiv 2502.02538): 500,000 updates, mean of the evaluations at '
    '300,000, 400,000 and 500,000 with 50 episodes each, 4 seeds'
)
_AGENTS = ('iql', 'rebrac', 'ifql', 'fql')
_PIXELS = {
    'visual-cube-single-play-singletask-task1-v0': ((70, 12), (83, 6), (49, 7), (81, 12)),
    'visual-cube-double-play-singletask-task1-v0': ((34, 23), (4, 4), (8, 6), (21, 11)),
    'visual-scene-play-singletask-task1-v0': ((97, 2), (98, 4), (86, 10), (98, 3)),
    'visual-puzzle-3x3-play-singletask-task1-v0': ((7, 15), (88, 4), (100, 0), (94, 1)),
    'visual-puzzle-4x4-play-singletask-task1-v0': ((0, 0), (26, 6), (8, 15), (33, 6)),
}
"""Success in %, mean and standard deviation, of each of _AGENTS."""


@dataclass(frozen=True)
class PublishedResult:
    """Success in %, over seeds."""

    mean: float
    deviation: float
    source: str

    def __str__(self) -> str:
        return f'{self.mean:g} ± {self.deviation:g} %'


def published_result(agent: str, task: str) -> PublishedResult | None:
    """The published result of an agent on a task, if it is known here."""
    if task not in _PIXELS or agent not in _AGENTS:
        return None
    return PublishedResult(*_PIXELS[task][_AGENTS.index(agent)], FQL_PAPER)
