"""`fql inspect critic`: values, action gaps and disagreement of a run's critics."""

from fql.reports.critic_plots import plot_critic
from fql.training.critic_inspection import describe_inspection, inspect_critic
from scripts.inspect_args import InspectCritic


def run(args: InspectCritic) -> None:
    """Print the table and draw what was asked for."""
    inspection = inspect_critic(args.run, args.step, args.states, args.data_dir)
    print(describe_inspection(args.run, inspection))
    if args.png is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        best = (
            inspection.actions[inspection.advantages.argmax(axis=1)]
            if inspection.actions.shape[1] == 2
            else None
        )
        plot_critic(
            args.png,
            inspection.values,
            inspection.gaps,
            inspection.disagreements,
            inspection.positions,
            best,
            f'{args.run}, update {inspection.step:,}',
        )
        print(f'wrote {args.png}')
