"""The JSON file that `--json` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.files import write_json


def write_json_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report and say where, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
        print(f'wrote {path}')
