"""`fql compare`: the success of several runs, those that differ in a number only taken together."""

from fql.reports.compare import compare_runs
from scripts.compare_args import Compare


def run(args: Compare) -> None:
    """Prints a table and draws the curves."""
    print(compare_runs(args.runs, args.out))
    print(f'written: {args.out}')
