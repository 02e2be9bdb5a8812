"""Metrics of a run: a CSV file, which is the record, and TensorBoard event files made from it."""

import csv
import io
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from data_pipeline.files import naming, sync_path, write_text
from fql.errors import FQLError

EVENTS = 'events.out.tfevents.'
"""Prefix of the names of event files."""
Mirror = Callable[[int, Mapping[str, float]], None]


class MetricsLog:
    """Writer of rows to a CSV file, and of those of its scalars that are finite to TensorBoard.

    A log opened at step n first drops the rows of later steps, which a killed run may have
    written after its last checkpoint, and writes new event files of the rows that remain: a resumed
    run has neither gaps nor duplicates.

    The CSV file holds no times, so that two runs of one configuration can be compared byte by byte;
    the event files hold when each row was written.
    """

    def __init__(
        self,
        path: Path,
        tensorboard: Path,
        step: int | None,
        mirror: Mirror | None = None,
        written: int = 0,
    ) -> None:
        """Open the log `path` of a run that continues (or starts, 0) at `step`.

        Args:
            path: the CSV file.
            tensorboard: folder of the event files.
            step: rows of later steps are dropped; None keeps all.
            mirror: called with every new row, (step, metrics).
            written: rows up to `step` that were written before.
        """
        self._path = path
        self._tensorboard = tensorboard
        self._mirror = mirror
        tensorboard.mkdir(parents=True, exist_ok=True)
        for old in tensorboard.glob(f'{EVENTS}*'):  # What else is there is not ours.
            old.unlink()
        # The plain writer: tensorboardX's usual one writes in a separate process and thread,
        # whose faults cannot be caught, into a file named after the machine.
        self._events = RecordWriter(str(tensorboard / f'{EVENTS}{int(time.time())}'))
        self._write_event(file_version='brain.Event:2')
        found = read_csv(path)
        if path.exists() and b'\0' in path.read_bytes():
            steps = ', '.join(row['step'] for row in found[-1:]) or 'none'
            print(
                f'{path} was damaged at its end, which is cut; its last step is {steps}',
                flush=True,
            )
        rows = [row for row in found if step is None or int(row['step']) <= step]
        if len(rows) < written:
            print(
                f'{path} has {len(rows)} of the {written} rows that were written up to step '
                f'{step:,}: the others are lost',
                flush=True,
            )
        self._rows = len(rows)
        self._columns = list(rows[0]) if rows else []
        # At once, since another process may be reading: it must always find the rows.
        if rows:
            write_text(path, _as_csv(rows))
        else:
            path.unlink(missing_ok=True)
        for row in rows:
            self._write_events(row)

    @property
    def rows(self) -> dict[str, int]:
        """Rows written, by the file's name, for a checkpoint."""
        return {self._path.name: self._rows}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row.

        Raises:
            FQLError: the rows that are there have other columns.
        """
        self._append({'step': str(step), **{name: repr(float(v)) for name, v in metrics.items()}})
        if self._mirror is not None:
            self._mirror(step, metrics)

    def _append(self, row: Mapping[str, str]) -> None:
        self._columns = self._columns or list(row)
        if list(row) != self._columns:
            other = sorted(set(row) ^ set(self._columns)) or ['their order']
            raise FQLError(
                f'{self._path} has other columns than this run '
                f'({", ".join(name[:40] for name in other[:3])}); move it away'
            )
        text = _as_csv([row])
        with naming(self._path), self._path.open('a', encoding='utf-8') as file:
            file.write(text if file.tell() == 0 else text[text.index('\n') + 1 :])
        self._rows += 1
        self._write_events(row)

    def sync(self) -> None:
        """Make the system write the rows to the disk."""
        if self._path.exists():
            sync_path(self._path)
            sync_path(self._path.parent)

    def _write_events(self, row: Mapping[str, str]) -> None:
        with naming(self._tensorboard):
            for name, value in row.items():
                # TensorBoard draws no others, and its writer warns of each.
                if name != 'step' and math.isfinite(float(value)):
                    self._write_event(step=int(row['step']), summary=scalar(name, float(value)))
            self._events.flush()

    def _write_event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> 'MetricsLog':
        return self

    def __exit__(self, *_: object) -> None:
        # The event files are made from the CSV file when the run is resumed.
        with suppress(OSError):
            self._events.close()


def _as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows with a header; empty without rows."""
    if not rows:
        return ''
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a metrics file: `step`, a whole number, and other numbers.

    None if the file does not exist. What follows a NUL, as a power failure leaves them, and a last
    line cut short are taken as not written.

    Args:
        columns: that the file must have if it has rows.

    Raises:
        FQLError: it is damaged otherwise, or lacks a column.
    """
    if path.exists() and not path.is_file():  # Reading a pipe would never end.
        raise FQLError(f'{path} is not a file: move it away')
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    content = content.partition(b'\0')[0].replace(b'\r\n', b'\n')
    text = content[: content.rfind(b'\n') + 1].decode('utf-8', errors='replace')
    header, *lines = [line.split(',') for line in text.split('\n')[:-1]] or [[]]
    if lines and not _is_row(lines[-1], len(header)):
        lines.pop()
    if not lines:
        return []
    if header[0] != 'step' or len(set(header)) < len(header):
        raise FQLError(f'{path}: the first line does not name the columns; it is damaged')
    for number, line in enumerate(lines, start=2):
        if not _is_row(line, len(header)):
            raise FQLError(f'{path}: line {number} is damaged; repair it, or delete that line')
    if missing := [name for name in columns if name not in header]:
        raise FQLError(f'{path} has no column {", ".join(missing)}')
    return [dict(zip(header, line, strict=True)) for line in lines]


def _is_row(values: Sequence[str], width: int) -> bool:
    """Whether these are `width` numbers of which the first is a step."""
    if len(values) != width or not re.fullmatch('[0-9]{1,18}', values[0]):
        return False
    try:
        return bool([float(value) for value in values])
    except ValueError:
        return False
