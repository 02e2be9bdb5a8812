"""Published results, to compare a run's with. Results that are not known here are left out.

`fql_paper.csv` holds Table 3 of the FQL paper, and `fql_paper_online.csv` the results after the
online phase in its Table 4: success in % or D4RL's score, mean ± standard deviation over seeds. The
paper quotes numbers without a deviation from Tarasov et al. 2023 (CORL). Its BC is left out: it is
Gaussian, ours is a flow. A cell is empty where the paper has no result.
"""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

from fql.envs.tasks import find_task

FQL_PAPER = 'Park, Li, Levine 2025 (arXiv 2502.02538)'
OFFLINE = Path(__file__).with_name('fql_paper.csv')
ONLINE = Path(__file__).with_name('fql_paper_online.csv')


@dataclass(frozen=True)
class PublishedResult:
    """A result over seeds.

    Attributes:
        mean: success in %, or D4RL's score.
        deviation: standard deviation over seeds; None where the paper gives none.
        unit: '%' or ''.
        source: the paper and how it measured.
    """

    mean: float
    deviation: float | None
    unit: str
    source: str

    @property
    def spread(self) -> str:
        """The deviation as it is printed; empty if there is none."""
        return '' if self.deviation is None else f'± {self.deviation:g}'

    def __str__(self) -> str:
        return ' '.join(part for part in (f'{self.mean:g}', self.spread, self.unit) if part)


def published_result(agent: str, task: str, *, online: bool) -> PublishedResult | None:
    """The published result of an agent on a task, if it is known here.

    Args:
        online: after an online phase, instead of offline updates alone.
    """
    text = _table(ONLINE if online else OFFLINE).get(task, {}).get(agent, '')
    if not text:
        return None
    mean, _, deviation = text.partition(' ± ')
    unit = '' if find_task(task).returns else '%'
    source = f'{FQL_PAPER}: {_protocol(task, online)}'
    if not deviation:
        return PublishedResult(float(mean), None, unit, f'{FQL_PAPER}, quoting Tarasov et al. 2023')
    return PublishedResult(float(mean), float(deviation), unit, source)


def _protocol(task: str, online: bool) -> str:
    """How the paper measured, from its appendix B."""
    if online:
        return '1,000,000 updates and 1,000,000 environment steps, then 50 episodes, 8 seeds'
    if find_task(task).returns:
        return '500,000 updates, then 50 episodes, 8 seeds'
    if find_task(task).has_images:
        updates, steps, seeds = '500,000', '300,000, 400,000 and 500,000', 4
    else:
        updates, steps, seeds = '1,000,000', '800,000, 900,000 and 1,000,000', 8
    return f'{updates} updates, mean of the evaluations at {steps}, 50 episodes each, {seeds} seeds'


@functools.cache
def _table(path: Path) -> dict[str, dict[str, str]]:
    """Results by task and agent. A cell of tasks has all names of one task."""
    with path.open(encoding='utf-8', newline='') as file:
        return {name: row for row in csv.DictReader(file) for name in row['task'].split()}
