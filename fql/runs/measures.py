"""The number by which evaluations are compared: D4RL's score, success, or the return."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fql.errors import FQLError
from fql.runs.metrics_log import read_csv


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation.

    Attributes:
        name: its printed name.
        column: of `eval.csv`.
        format_spec: how it is printed.
    """

    name: str
    column: str
    format_spec: str

    def text(self, value: float) -> str:
        """The value as it is printed."""
        return format(value, self.format_spec)


SCORE = Measure('score', 'evaluation/score', '.1f')
SUCCESS = Measure('success', 'evaluation/success', '.1%')
RETURN = Measure('return', 'evaluation/return', '.1f')


def measure_of(rows: Sequence[Mapping[str, str]]) -> Measure:
    """The measure of the rows of an `eval.csv`.

    D4RL's score where there is one, else success, or the return where the environment reports no
    success.
    """
    if any(SCORE.column in row for row in rows):
        return SCORE
    if rows and all(math.isnan(float(row[SUCCESS.column])) for row in rows):
        return RETURN
    return SUCCESS


def read_results(path: Path, measure: Measure | None = None) -> tuple[Measure, dict[int, float]]:
    """The measure of an `eval.csv`, and its value in each evaluation, by step.

    Args:
        measure: in place of the file's own.

    Raises:
        FQLError: the file is damaged, or a success lies outside [0, 1].
    """
    measure = measure or measure_of(read_csv(path, [SUCCESS.column]))
    rows = read_csv(path, [measure.column])
    results = {int(row['step']): float(row[measure.column]) for row in rows}
    for step, value in results.items() if measure is SUCCESS else ():
        if math.isnan(value):  # As in an evaluation: where others have one, it is none.
            results[step] = 0.0
        if value < 0 or value > 1:
            raise FQLError(f'{path}: the success of update {step:,} is {value:g}; repair that line')
    return measure, results
