"""Workers for a run's environment, and evaluation of a policy in them."""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from data_pipeline.files import write_json
from data_pipeline.machine import available_processors
from fql.envs.make import EnvSpec
from fql.envs.tasks import OWN_TASK, find_task
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError
from fql.reports.video import save_gif
from fql.training.config import TrainConfig
from fql.training.evaluation import EvaluationResult, Policy, evaluate
from fql.training.metrics_log import MetricsLog, read_csv
from fql.training.progress import progress_bar, progress_callback
from fql.training.run_folder import RunFolder, RunSpec

MAX_WORKERS = 16
VIDEO_EPISODES = 2
VIDEO_FPS = 20


def start_workers(
    spec: RunSpec,
    config: TrainConfig,
    episodes: int,
    num_workers: int,
    while_waiting: Callable[[], None] = lambda: None,
) -> EnvWorkers:
    """Starts environments of a run, in at most as many processes as there are episodes.

    Args:
        num_workers: how many processes; 0: one for each processor that this process may use, at
            most MAX_WORKERS.
        while_waiting: see `EnvWorkers`.

    Raises:
        FQLError: the environment cannot be made, or it does not give what the data hold.
    """
    if config.task == OWN_TASK:
        raise FQLError('the task is of the data themselves: it has no environment to evaluate in')
    kwargs: tuple[tuple[str, str | int], ...] = (('success_timing', config.success_timing),)
    if spec.images:
        # The data may have been collected at another size than the environment's own.
        height, width, _ = spec.observation_shape
        kwargs += (('height', height), ('width', width))
    env_spec = EnvSpec(
        env_id=find_task(config.task).env_id,
        kwargs=kwargs,
        frame_stack=config.frame_stack,
        max_episode_steps=config.max_episode_steps or None,
    )
    asked = num_workers or min(available_processors(), MAX_WORKERS)
    workers = EnvWorkers(env_spec, min(asked, episodes), config.env_step_seconds, while_waiting)
    given = (workers.observation_shape, str(workers.observation_dtype), workers.action_dim)
    wanted = (spec.observation_shape, spec.observation_dtype, spec.action_dim)
    if given != wanted:
        workers.close()
        raise FQLError(
            f'the dataset is not of the environment of {config.task}: its observations (stacked) '
            f'and actions are {wanted[0]} {wanted[1]} and {wanted[2]}, '
            f"the environment's {given[0]} {given[1]} and {given[2]}"
        )
    return workers


def evaluate_with_progress(
    workers: EnvWorkers,
    policy: Policy,
    episodes: int,
    seed: int,
    label: str,
    record_episodes: int = 0,
) -> EvaluationResult:
    """`evaluate` with a progress bar."""
    with progress_bar(label, 'episode', episodes) as bar:
        return evaluate(
            workers,
            policy,
            episodes,
            seed,
            record_episodes=record_episodes,
            progress=progress_callback(bar),
            notify=tqdm.write,
        )


def record_evaluation(
    folder: RunFolder, log: MetricsLog, step: int, result: EvaluationResult
) -> None:
    """Writes an evaluation into the run's folder: video, episodes, and last the metrics' row."""
    if result.frames:
        folder.videos.mkdir(exist_ok=True)
        save_gif(folder.videos / f'{step}.gif', result.frames, VIDEO_FPS)
    episodes = [
        {'seed': int(seed), 'success': float(success), 'return': float(ret), 'length': int(length)}
        for seed, success, ret, length in zip(
            result.seeds, result.successes, result.returns, result.lengths, strict=True
        )
    ]
    folder.evaluations.mkdir(exist_ok=True)
    write_json(folder.evaluations / f'{step}.json', episodes, indent=1)
    log.write(
        step,
        {
            'evaluation/success': result.success,
            'evaluation/return': float(result.returns.mean()),
            'evaluation/length': float(result.lengths.mean()),
        },
    )
    log.sync()


def recorded_successes(path: Path) -> dict[int, float]:
    """The success of each step in a metrics file of evaluations."""
    name = 'evaluation/success'
    return {int(row['step']): float(row[name]) for row in read_csv(path, [name])}


def recorded_steps(path: Path) -> set[int]:
    """The steps that have a row in a metrics file."""
    return {int(row['step']) for row in read_csv(path)}
