"""The main workflow on a small pixel task, from collection to a compared policy."""

import dataclasses
import time
from pathlib import Path

from data_pipeline.collection.collect import collect
from data_pipeline.collection.recipes import Recipe
from data_pipeline.data_dir import collected_file
from data_pipeline.errors import DataError
from data_pipeline.files import make_folder
from data_pipeline.machine import available_processors
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.writer import write_store
from fql.command import command
from fql.envs.tasks import QUICKSTART_ENV, QUICKSTART_MODULE
from fql.policies.evaluation import evaluate_with_progress, start_workers
from fql.policies.policy import make_act, make_policy
from fql.policies.rollouts import EvaluationResult, random_policy
from fql.reports.data_report import describe_store
from fql.reports.plots import plot_learning_curve
from fql.reports.video import save_video
from fql.runs.progress import progress_bar, progress_callback
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import read_spec
from fql.settings.presets import quickstart_config
from fql.settings.train_config import TrainConfig
from fql.training.train import train

EPISODES = 160
EPISODE_STEPS = 125
NOISE = 0.5
COLLECT_SEED = 0
GIF_EPISODES = 4
GIF_FPS = 20


def quickstart(data_dir: Path, run_dir: Path | None, seed: int) -> int:
    """Collect (once), train, compare; return the exit code."""
    began = time.monotonic()
    folder = RunFolder((run_dir or free_run_dir()).absolute())
    config = dataclasses.replace(quickstart_config(), data_dir=str(data_dir), seed=seed)
    print(f'1/3 data: {config.dataset}')
    prepare_data(config.dataset, data_dir)
    print('2/3 training')
    if code := train(config, folder.path, resume='never'):
        return code
    print('3/3 comparison with the behaviour-cloned flow policy of the same run and with chance')
    results = compare(config, folder)
    success = {name: result.success for name, result in results.items()}
    plot_learning_curve(
        folder, config.task, {name: success[name] for name in success if name != 'FQL'}
    )
    gif = folder.path / 'rollout.gif'
    save_video(gif, results['FQL'].recordings, GIF_FPS)
    print(f'success over {config.eval_episodes} episodes, the same seeds for each:')
    for name, value in success.items():
        print(f'  {name:<28} {value:6.1%}')
    print(f'learning curve: {folder.learning_curve}')
    print(f'rollouts of FQL: {gif}')
    print(f'next: {command("--help")}')
    if command() != 'fql':
        print('(the command is plain fql after: source .venv/bin/activate)')
    print(f'all in {(time.monotonic() - began) / 60:.1f} min')
    return 0


def free_run_dir() -> Path:
    """runs/quickstart, or runs/quickstart-2 and so on if that exists."""
    path, number = Path('runs/quickstart'), 1
    while path.exists():
        number += 1
        path = Path(f'runs/quickstart-{number}')
    return path


def prepare_data(dataset: str, data_dir: Path) -> None:
    """Collect the quickstart's dataset into `data_dir` and prepare it, unless already done.

    Raises:
        DataError: among others, the existing store is not of these data, or damaged; names the
            command that replaces it.
    """
    path = data_dir / dataset
    source = collected_file(str(data_dir), dataset)
    if not source.exists():
        make_folder(source.parent)
        recipe = Recipe(
            f'{QUICKSTART_MODULE}:visual-{QUICKSTART_ENV}-v0',
            'roam',
            episode_steps=EPISODE_STEPS,
            noise=NOISE,
            seed=COLLECT_SEED,
        )
        with progress_bar('collect', 'frame') as bar:
            collect(
                recipe,
                source,
                episodes=EPISODES,
                workers=available_processors(),
                progress=progress_callback(bar),
            )
    try:
        splits = npz_splits(source)
    except DataError as error:
        raise DataError(f'{error}; delete it, then run the command again') from error
    stands = path.exists()
    try:
        store = write_store(path, dataset, splits)
    except DataError as error:
        if not stands:
            raise
        arguments = ('prepare', dataset, '--source', source, '--data-dir', data_dir, '--overwrite')
        raise DataError(f'{error}: {command(*arguments)}') from error
    print(describe_store(store))


def compare(config: TrainConfig, folder: RunFolder) -> dict[str, EvaluationResult]:
    """Evaluate FQL's policy, the flow policy it was distilled from, and random actions."""
    spec = read_spec(folder)
    _, params = restore_params(folder, spec, config.steps)
    agent, seed = agent_of(spec), config.eval_seed
    policies = {
        'FQL': make_policy(make_act(agent, 'one_step'), params, seed),
        'behaviour-cloned flow policy': make_policy(make_act(agent, 'bc_flow'), params, seed),
        'random policy': random_policy(spec.action_dim, seed),
    }
    with start_workers(spec, config, config.eval_episodes, config.eval_workers) as workers:
        return {
            name: evaluate_with_progress(
                workers,
                policy,
                config.eval_episodes,
                seed,
                title=f'evaluate {name}',
                record_episodes=GIF_EPISODES if name == 'FQL' else 0,
            )
            for name, policy in policies.items()
        }
