"""Workers for a run's environment, and evaluation of a policy in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.files import write_json
from data_pipeline.machine import available_processors
from data_pipeline.observations import named
from fql.envs.make import EnvSpec
from fql.envs.tasks import Task, find_task
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError
from fql.output import print_notice
from fql.policies.rollouts import EvaluationResult, Policy, evaluate
from fql.reports.video import save_video
from fql.runs.measures import RETURN, SCORE, SUCCESS
from fql.runs.metrics_log import MetricsLog, read_csv
from fql.runs.progress import progress_bar, progress_callback
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig

MAX_WORKERS = 16
VIDEO_FPS = 20


def start_workers(
    spec: RunSpec,
    config: TrainConfig,
    episodes: int,
    num_workers: int,
    while_waiting: Callable[[], None] = lambda: None,
) -> EnvWorkers:
    """Start environments of a run, in at most as many processes as there are episodes.

    Args:
        num_workers: how many processes; 0: one for each processor that this process may use, at
            most MAX_WORKERS.
        while_waiting: see `EnvWorkers`.

    Raises:
        FQLError: there is no environment, it cannot be made, or does not give what the data hold.
    """
    task = find_task(config.task)
    env_id = config.env or task.env_id
    if not env_id:
        raise FQLError(
            f'task {task.name} has no environment to evaluate in; name one with --env MODULE:ID'
        )
    kwargs: tuple[tuple[str, str | int], ...] = ()
    if task.is_ogbench:
        kwargs += (('success_timing', config.success_timing),)
        if spec.has_images and not isinstance(spec.observation_shape, dict):
            # The data may have been collected at another size than the environment's own.
            height, width, _ = spec.observation_shape
            kwargs += (('height', height), ('width', width))
    env_spec = EnvSpec(
        env_id=env_id,
        kwargs=kwargs,
        observations=tuple(name for name in named(spec.observation_shape) if name),
        frame_stack=config.frame_stack,
        max_episode_steps=config.max_episode_steps or None,
        action_range=spec.action_range,
    )
    asked = num_workers or min(available_processors(), MAX_WORKERS)
    workers = EnvWorkers(env_spec, min(asked, episodes), config.env_step_seconds, while_waiting)
    given = _described(workers.observation_shape, workers.observation_dtype)
    wanted = _described(spec.observation_shape, spec.observation_dtype)
    differences = [
        f'observations {name}(stacked) are {given[name]}, those of the data {wanted[name]}'
        for name in wanted
        if given[name] != wanted[name]
    ]
    if workers.action_dim != spec.action_dim:
        differences.append(
            f'actions have size {workers.action_dim}, those of the data {spec.action_dim}'
        )
    if differences:
        workers.close()
        raise FQLError(
            f'the data are not of environment {env_id}: its {"; its ".join(differences)}'
        )
    if workers.max_episode_steps is None:
        print_notice(
            f'environment {env_id} has no registered time limit: where it does not end its '
            'episodes itself, set one with --max-episode-steps'
        )
    return workers


def _described(shapes: Any, dtypes: Any) -> dict[str, str]:
    """Shape and type of each array, by its name followed by a space."""
    return {
        f'{name} '.lstrip(): f'{shape} {named(dtypes)[name]}'
        for name, shape in named(shapes).items()
    }


def evaluate_with_progress(
    workers: EnvWorkers,
    policy: Policy,
    episodes: int,
    seed: int,
    title: str,
    record_episodes: int = 0,
) -> EvaluationResult:
    """`evaluate` with a progress bar."""
    with progress_bar(title, 'episode', episodes) as bar:
        return evaluate(
            workers,
            policy,
            episodes,
            seed,
            record_episodes=record_episodes,
            progress=progress_callback(bar),
            notify=tqdm.write,
        )


def describe_result(task: Task, result: EvaluationResult) -> str:
    """What an evaluation gave, by D4RL's score, by success and, where there is none, by return."""
    mean_return = float(result.returns.mean())
    parts = []
    if task.returns:
        parts.append(f'{SCORE.name} {SCORE.text(task.score(mean_return))}')
    if not np.isnan(result.success):
        parts.append(f'{SUCCESS.name} {SUCCESS.text(result.success)}')
    return ', '.join(parts) or f'{RETURN.name} {RETURN.text(mean_return)}'


def evaluate_and_record(
    workers: EnvWorkers,
    policy: Policy,
    config: TrainConfig,
    episodes: int,
    folder: RunFolder,
    log: MetricsLog,
    step: int,
) -> str:
    """Evaluate a run after update `step`, and write the results into its folder.

    Args:
        config: the run's settings: the episodes' seed, the videos, the task.
        log: of evaluations.

    Returns:
        A line that describes the results.
    """
    task = find_task(config.task)
    result = evaluate_with_progress(
        workers,
        policy,
        episodes,
        config.eval_seed,
        title=f'evaluate update {step:,}',
        record_episodes=config.eval_videos,
    )
    record_evaluation(folder, log, step, result, task)
    return f'update {step:,}: {describe_result(task, result)} ({episodes} episodes)'


def record_evaluation(
    folder: RunFolder, log: MetricsLog, step: int, result: EvaluationResult, task: Task
) -> None:
    """Write an evaluation into the run's folder: video, episodes, and last the metrics' row."""
    if result.recordings:
        folder.videos.mkdir(exist_ok=True)
        save_video(folder.videos / f'{step}.gif', result.recordings, VIDEO_FPS)
    episodes = [
        {'seed': int(seed), 'success': float(success), 'return': float(ret), 'length': int(length)}
        for seed, success, ret, length in zip(
            result.seeds, result.successes, result.returns, result.lengths, strict=True
        )
    ]
    folder.evaluations.mkdir(exist_ok=True)
    write_json(folder.evaluations / f'{step}.json', episodes, indent=1)
    mean_return = float(result.returns.mean())
    metrics = {
        SUCCESS.column: result.success,
        RETURN.column: mean_return,
        'evaluation/length': float(result.lengths.mean()),
    }
    if task.returns:
        metrics[SCORE.column] = task.score(mean_return)
    log.write(step, metrics)
    log.sync()


def recorded_steps(path: Path) -> set[int]:
    """The steps that have a row in a metrics file."""
    return {int(row['step']) for row in read_csv(path)}
