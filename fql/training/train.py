"""A run of training, from the checks before it to its last checkpoint."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipeline.loader import num_starts, num_whole
from data_pipeline.store.latents import stored_latents
from data_pipeline.store.verification import Verification, VerifyMode
from fql.command import command
from fql.compiled import initial_state
from fql.devices import local_copy, wait_for_all_processes
from fql.envs.workers import EnvWorkers
from fql.learner import TrainState
from fql.policies.evaluation import evaluate_and_record, recorded_steps, start_workers
from fql.policies.policy import make_act, make_policy
from fql.reports.plots import plot_learning_curve
from fql.runs.checkpoints import CheckpointWriter, rows_written
from fql.runs.interruption import Interruption, ended_with_others
from fql.runs.measures import read_results
from fql.runs.metrics_log import MetricsLog
from fql.runs.run_checkpoints import restore_newest
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of, loaded_fields, train_step_of, validation_of
from fql.runs.run_spec import RunSpec, read_identity, versions, write_spec
from fql.runs.run_start import Logs, claimed_folder, open_logs, write_description
from fql.runs.wandb_mirror import wandb_mirror
from fql.settings.run_arguments import Resume
from fql.settings.train_config import TrainConfig
from fql.training.checked_run import CheckedRun, check_run
from fql.training.latent_cache import cached_data, uses_cache
from fql.training.loop import Batches, Trainer, rows_logged
from fql.training.online import is_evaluation_due, offline_state, start_actors, train_online
from fql.training.summaries import end_summary, start_summary
from fql.training.training_data import LabelledSplit, loader_config, training_batches
from fql.training.verified_data import finish_verification


def train(config: TrainConfig, path: Path, resume: Resume, verify_data: VerifyMode = 'once') -> int:
    """Make a run's updates, up to `config.total_updates`, in the run folder `path`.

    The online phase, if there is one, follows the updates on the data alone.

    Args:
        resume: see `fql.settings.run_arguments.choose_folder`.
        verify_data: whether to compare the data with their checksums during training.

    Returns:
        0 when done, `EXIT_CODE` after SIGINT or SIGTERM, when the state was saved.

    Raises:
        FQLError, DataError, EncoderError: what the user asked for cannot be done. Nothing was
            written then, except if latents are not finite.
        DamagedError: the data are not what was written. No checkpoint was written after that was
            found. Before all data were verified, one was written only before the first update, and
            where the run was stopped by a signal or another fault.
    """
    run = check_run(config, path, resume)
    folder, spec, store = run.folder, run.spec, run.store
    is_main = jax.process_index() == 0
    with ExitStack() as stack:
        verification = stack.enter_context(Verification(store.path, verify_data))
        verification.add(store.stored_arrays)
        interruption = Interruption()
        workers, actors = start_environments(stack, run, interruption)
        stack.enter_context(claimed_folder(folder))
        state, is_restored, notices = starting_state(run)
        write_description(folder, store, lambda: write_spec(folder, spec))
        start = int(state.step)
        is_evaluation_missing = is_evaluation_due(config, start) and start not in recorded_steps(
            folder.eval_csv
        )
        wait_for_all_processes('state')
        writer = stack.enter_context(checkpoint_writer(run))
        metadata = {'versions': versions()}
        if not is_restored and config.online.source:
            writer.save(state, metadata)  # At once, so that the other run is not needed any more.
            writer.wait()
        frozen = None
        if uses_cache(config):
            frozen = local_copy(state.params['encoders']['shared'], run.mesh)
        logs, rows = Logs(), rows_written(folder.checkpoints, start)
        if is_main:
            summary = start_summary(spec, run.data, state, folder, frozen)
            print('\n'.join([*notices, summary]), flush=True)
            mirror = wandb_mirror(config, folder) if config.wandb_project else None
            has_evaluations = config.eval_interval > 0
            logs = open_logs(stack, folder, start, rows, evaluates=has_evaluations, mirror=mirror)
        data = run.data
        if frozen is not None:
            data = cached_data(data, spec, frozen, lambda: finish_verification(verification))
            verification.add(stored_latents(data['train'].split.path.parent))
        stack.enter_context(interruption)
        stack.enter_context(ended_with_others())
        trainer = Trainer(
            schedule=config,
            mesh=run.mesh,
            folder=folder,
            fields=loaded_fields(agent_of(spec)),
            train_step=train_step_of(
                spec, run.learner, run.abstract, has_latents=frozen is not None
            ),
            validate=validation_of(spec, run.learner),
            val_batches=validation_batches(run, data, start),
            evaluate=make_evaluation(spec, run.mesh, folder, workers, logs.evaluations),
            metadata=metadata,
            writer=writer,
            verification=verification,
            train_log=logs.updates,
            timing_log=logs.timing,
            eval_log=logs.evaluations,
            interruption=interruption,
            resume_command=command('train', '--resume', folder.path),
        )
        began = time.monotonic()
        code = 0
        if start <= config.steps:
            batches = training_batches(data['train'], config, start)
            state, code = trainer.train(state, batches, is_evaluation_missing)
            is_evaluation_missing = False
        if code == 0 and actors is not None:
            _, code = train_online(
                trainer, state, spec, data['train'], actors, is_evaluation_missing
            )
    if code == 0 and is_main:
        plot_learning_curve(folder, f'{config.agent.name}: {config.task}')
        updates = config.total_updates - start
        print(end_summary(folder, updates, time.monotonic() - began), flush=True)
    return code


def start_environments(
    stack: ExitStack, run: CheckedRun, interruption: Interruption
) -> tuple[EnvWorkers | None, EnvWorkers | None]:
    """The workers of evaluations and those of the online phase, until `stack` is left.

    None where the run, or this process, has no use for them.
    """
    config, spec = run.config, run.spec
    workers = actors = None
    if config.eval_interval and jax.process_index() == 0:
        stops = interruption.raise_if_noted if jax.process_count() == 1 else lambda: None
        workers = stack.enter_context(
            start_workers(spec, config, config.eval_episodes, config.eval_workers, stops)
        )
    if config.online.online_steps:
        actors = stack.enter_context(start_actors(spec))
    return workers, actors


def starting_state(run: CheckedRun) -> tuple[TrainState, bool, list[str]]:
    """The newest checkpoint's state, or the one before the first update.

    Returns:
        The state, whether it was restored, and notes about damaged checkpoints.
    """
    config = run.config
    state, notices = restore_newest(run.folder, run.folder.spec, run.abstract)
    if state is not None:
        return state, True, notices
    if config.online.source:
        return offline_state(config, run.abstract), False, notices
    state = initial_state(run.learner, config.seed, run.mesh, config.shard_params, run.encoder)
    return state, False, notices


def checkpoint_writer(run: CheckedRun) -> CheckpointWriter:
    """The writer of a described run's checkpoints, which keeps the best by its evaluations."""
    folder, config = run.folder, run.config
    return CheckpointWriter(
        folder.checkpoints,
        config.keep_latest,
        config.keep_interval,
        lambda: read_results(folder.eval_csv)[1],
        read_identity(folder.spec),
    )


def validation_batches(
    run: CheckedRun, data: dict[str, LabelledSplit], start: int
) -> Batches | None:
    """The batches of the `val` split from update `start` on; None where it has too few.

    Also where none of its chunks lies within a trajectory: its losses would be those of no value.
    """
    config = run.config
    # Chunks begin in fewer places than there are transitions.
    loader = loader_config(run.data['train'], config)
    if 'val' not in data or num_starts(data['val'].split, loader) < config.batch_size:
        return None
    if not num_whole(data['val'].split, loader):
        return None
    logged = rows_logged(config, min(start, config.steps))
    if start > config.steps:
        logged += sum(step > config.steps for step in recorded_steps(run.folder.train_csv))
    return training_batches(data['val'], config, logged)


def make_evaluation(
    spec: RunSpec,
    mesh: Mesh,
    folder: RunFolder,
    workers: EnvWorkers | None,
    log: MetricsLog | None,
) -> Callable[[TrainState], None]:
    """The function that evaluates a state, in the first process, and writes the results.

    All processes have to call it. Those without `workers` and `log` only give their part of the
    parameters.
    """
    config = spec.config
    act = make_act(agent_of(spec))

    def evaluate(state: TrainState) -> None:
        params = local_copy(state.params, mesh)
        if workers is None or log is None:
            return
        policy, step = make_policy(act, params, config.eval_seed), int(state.step)
        line = evaluate_and_record(workers, policy, config, config.eval_episodes, folder, log, step)
        tqdm.write(line)

    return evaluate
