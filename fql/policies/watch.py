"""`fql evaluate --watch`: evaluates a run's checkpoints beside its training."""

import dataclasses
import time
from collections.abc import Iterator

from data_pipeline.errors import first_line
from fql.errors import FQLError
from fql.policies.evaluation import evaluate_and_record, recorded_steps, start_workers
from fql.policies.policy import make_act, make_policy
from fql.reports.plots import plot_learning_curve
from fql.runs.metrics_log import MetricsLog
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import agent_of
from fql.runs.run_lock import lock_run
from fql.runs.run_spec import read_spec
from fql.settings.train_config import check_environment

POLL_SECONDS = 2.0


def watch(folder: RunFolder, episodes: int, num_workers: int, env: str = '') -> None:
    """Evaluate every checkpoint that has no evaluation yet, and each new one, up to the last.

    It writes only `eval.csv` and other results of evaluations, which the trainer leaves alone.

    Args:
        env: see `TrainConfig.env`; the run's own if empty.

    Raises:
        FQLError: the trainer evaluates by itself or saves nothing, another watcher is there, a
            checkpoint cannot be read, or a worker failed.
    """
    spec = read_spec(folder)
    config = dataclasses.replace(spec.config, env=env or spec.config.env)
    check_environment(config)
    if config.eval_interval:
        raise FQLError(f'{folder.path} is evaluated by its training; train with --eval-interval 0')
    if not config.save_interval:
        raise FQLError(f'{folder.path} saves no checkpoints: its save-interval is 0')
    act = make_act(agent_of(spec))
    with (
        lock_run(folder.watch_lock, 'watcher'),
        start_workers(spec, config, episodes, num_workers) as workers,
        MetricsLog(folder.eval_csv, folder.eval_tensorboard, step=None) as log,
    ):
        print(f'watching {folder.path} up to update {config.total_updates:,}', flush=True)
        for step in _new_steps(folder):
            try:
                _, params = restore_params(folder, spec, step)
            except Exception as error:
                if step in finished_steps(folder.checkpoints):
                    raise FQLError(
                        f'update {step:,} cannot be read: {first_line(error)}'
                    ) from error
                print(f'update {step:,} was deleted before it was read ({type(error).__name__})')
                continue
            policy = make_policy(act, params, config.eval_seed)
            line = evaluate_and_record(workers, policy, config, episodes, folder, log, step)
            print(line, flush=True)
    plot_learning_curve(folder, f'{config.agent.name}: {config.task}')
    print(f'all evaluated; curves: {folder.learning_curve}')


def _new_steps(folder: RunFolder) -> Iterator[int]:
    """Steps without an evaluation, as their checkpoints appear; ends after the run's last.

    The state before the first update is not evaluated.
    """
    seen = recorded_steps(folder.eval_csv) | {0}
    while read_spec(folder).config.total_updates not in seen:
        new = [step for step in finished_steps(folder.checkpoints) if step not in seen]
        if not new:
            time.sleep(POLL_SECONDS)
        for step in new:
            seen.add(step)
            yield step
