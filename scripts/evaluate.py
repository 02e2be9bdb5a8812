"""`fql evaluate`: rolls out the policy of a run."""

import dataclasses

from fql.envs.tasks import find_task
from fql.output import print_notice
from fql.policies.evaluation import (
    VIDEO_FPS,
    describe_result,
    evaluate_with_progress,
    start_workers,
)
from fql.policies.policy import make_act, make_policy, with_candidates
from fql.policies.rollouts import Policy, random_policy
from fql.policies.watch import watch
from fql.reports.video import save_video
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_spec
from fql.settings.train_config import check_environment
from fql.training.comparability import comparability
from scripts.evaluate_args import Evaluate

VIDEO_EPISODES = 4


def run(args: Evaluate) -> None:
    """Evaluate one checkpoint and print, or watch a run (see `fql.policies.watch`)."""
    if args.watch:
        watch(RunFolder(args.run), args.episodes, args.workers, args.env)
        return
    run_folder = RunFolder(args.run)
    spec = read_spec(run_folder)
    names = ('max_episode_steps', 'env_step_seconds', 'success_timing')
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    config = dataclasses.replace(spec.config, **given, env=args.env or spec.config.env)
    check_environment(config)
    task = find_task(config.task)
    seed = spec.config.eval_seed if args.seed is None else args.seed
    policies = make_policies(args, run_folder, spec, seed)
    with start_workers(spec, config, args.episodes, args.workers) as workers:
        for name, policy in policies.items():
            result = evaluate_with_progress(
                workers,
                policy,
                args.episodes,
                seed,
                title='evaluate',
                record_episodes=VIDEO_EPISODES if args.video else 0,
            )
            judged = f', success judged {config.success_timing}-step' if task.is_ogbench else ''
            print(
                f'{config.env or config.task}: {name}: {describe_result(task, result)} over '
                f'{args.episodes} episodes (seeds {seed} to {seed + args.episodes - 1}{judged}), '
                f'mean return {result.returns.mean():.1f}, mean length {result.lengths.mean():.0f}'
            )
    if task.returns:
        print(f'this score is {comparability(config)}')
    if args.video is not None and result.recordings:
        args.video.parent.mkdir(parents=True, exist_ok=True)
        save_video(args.video, result.recordings, VIDEO_FPS)
        print(f'wrote {args.video}')


def make_policies(args: Evaluate, folder: RunFolder, spec: RunSpec, seed: int) -> dict[str, Policy]:
    """What to evaluate, by its printed name.

    Raises:
        FQLError: there is no such policy or checkpoint, or the agent chooses among no candidates.
    """
    if args.policy == 'random':
        return {'random policy': random_policy(spec.action_dim, seed)}
    name = args.policy or agent_of(spec).policies[0]
    agents = {f'{name} policy': agent_of(spec)}
    if args.candidates:
        agents = {
            f'{name} policy, best of {count}': agent_of(with_candidates(spec, count, name))
            for count in args.candidates
        }
    acts = {title: make_act(agent, name) for title, agent in agents.items()}
    step, params = restore_params(folder, spec, args.step, print_notice)
    return {
        f'{title} of update {step:,}': make_policy(act, params, seed) for title, act in acts.items()
    }
