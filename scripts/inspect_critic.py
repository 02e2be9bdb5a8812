"""`fql inspect critic`: values, action gaps and disagreement of a run's critics."""

from fql.reports.critic_plots import plot_critic
from fql.training.critic_inspection import describe_view, view_critic
from scripts.inspect_args import InspectCritic


def run(args: InspectCritic) -> None:
    """Print the table and draw what was asked for."""
    view = view_critic(args.run, args.step, args.states, args.data_dir)
    print(describe_view(args.run, view))
    if args.png is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        best = view.actions[view.advantages.argmax(axis=1)] if view.actions.shape[1] == 2 else None
        plot_critic(
            args.png,
            view.values,
            view.gaps,
            view.disagreements,
            view.positions,
            best,
            f'{args.run}, step {view.step:,}',
        )
        print(f'wrote {args.png}')
