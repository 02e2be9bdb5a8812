"""`fql quickstart`: the main workflow on a small pixel task, from data to a compared policy."""

from data_pipeline.data_dir import resolve_data_dir
from fql.training.quickstart import quickstart
from scripts.quickstart_args import Quickstart


def run(args: Quickstart) -> int:
    """Collect (once), train, compare; return the exit code."""
    return quickstart(resolve_data_dir(args.data_dir), args.run_dir, args.seed)
