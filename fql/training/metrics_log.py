"""Metrics of a run: a CSV file, which is the record, and TensorBoard event files made of it."""

import csv
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from data_pipeline.files import write_text

Mirror = Callable[[int, Mapping[str, float]], None]


class MetricsLog:
    """Appends rows to a CSV file, and the same scalars to TensorBoard.

    A log opened at step n first drops the rows of later steps, which a killed run may have
    written after its last checkpoint, and writes the event files anew from the rows that remain:
    a resumed run has neither gaps nor duplicates.

    The CSV file holds no times, so that two runs of one configuration can be compared byte by byte;
    the event files hold when each row was written.
    """

    def __init__(
        self, path: Path, tensorboard: Path, step: int | None, mirror: Mirror | None = None
    ) -> None:
        """Opens the log `path` of a run that continues (or starts, 0) at `step`.

        Args:
            path: the CSV file.
            tensorboard: folder of the event files.
            step: rows of later steps are dropped; None keeps all.
            mirror: called with every new row, (step, metrics).
        """
        self._path = path
        self._mirror = mirror
        shutil.rmtree(tensorboard, ignore_errors=True)
        tensorboard.mkdir(parents=True)
        # The plain writer: tensorboardX's usual one writes in a process and a thread of its own,
        # whose faults cannot be caught, into a file named after the machine.
        self._events = RecordWriter(str(tensorboard / f'events.out.tfevents.{int(time.time())}'))
        self._write_event(file_version='brain.Event:2')
        rows = [row for row in read_csv(path) if step is None or int(row['step']) <= step]
        # At once, since another process may be reading: it must not find the rows gone.
        if rows:
            write_text(path, _as_csv(rows))
        else:
            path.unlink(missing_ok=True)
        for row in rows:
            self._write_events(row)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row; every row of a file has the same names."""
        self._append({'step': str(step), **{name: repr(float(v)) for name, v in metrics.items()}})
        if self._mirror is not None:
            self._mirror(step, metrics)

    def _append(self, row: Mapping[str, str]) -> None:
        text = _as_csv([row])
        with self._path.open('a') as file:
            file.write(text if file.tell() == 0 else text[text.index('\n') + 1 :])
        self._write_events(row)

    def _write_events(self, row: Mapping[str, str]) -> None:
        for name, value in row.items():
            if name != 'step':
                self._write_event(step=int(row['step']), summary=scalar(name, float(value)))
        self._events.flush()

    def _write_event(self, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def __enter__(self) -> 'MetricsLog':
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written is made anew of the CSV file when the run is resumed.
        with suppress(OSError):
            self._events.close()


def _as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows with a header; nothing if there are none."""
    if not rows:
        return ''
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file; none if it does not exist. A last line cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind('\n') + 1]
    return list(csv.DictReader(io.StringIO(whole)))
