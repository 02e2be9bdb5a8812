"""`fql report`: compares runs on one page."""

from fql.reports.report import report
from scripts.report_args import Report


def run(args: Report) -> None:
    """Print a table and write the page."""
    print(report(args.runs, args.out))
    print(f'wrote {args.out}')
