"""`fql export-policy`: the policies of a run's checkpoint, written to a folder."""

from fql.policies.exported_policy import export_policy
from scripts.export_policy_args import ExportPolicy


def run(args: ExportPolicy) -> None:
    """Write the folder; say what is in it."""
    description = export_policy(args.run, args.step, args.out)
    print(f'{args.out}: {", ".join(description.policies)} of update {description.step:,}')
