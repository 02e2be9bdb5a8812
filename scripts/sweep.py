"""`fql sweep`: trains many runs."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.data_dir import resolve_data_dir
from fql.sweeps.file import find_sweep
from fql.sweeps.sweep import dry_run, sweep
from scripts.sweep_args import Sweep


def run(args: Sweep) -> int:
    """Run a sweep, or print its commands; return the exit code."""
    file = find_sweep(args.file)
    path = (args.dir or Path('runs') / file.stem).absolute()
    data_dir = str(resolve_data_dir(args.data_dir)) if args.data_dir else ''
    if args.dry_run:
        dry_run(file, path, data_dir)
        return 0
    options = dict(option.split('=', 1) for option in args.cluster_options)
    return sweep(
        file,
        path,
        data_dir,
        args.jobs,
        args.gpus,
        args.cluster,
        {name: value_of(text) for name, text in options.items()},
    )


def value_of(text: str) -> Any:
    """A number or a list, as JSON writes it, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
