"""The online phase: environment steps and updates in turn, after the updates on the data alone.

Turn t with W environments and U updates a step:

    the policy is computed with the parameters after turn t - 1
    W * U updates, on data and replay as they are after turn t - 1   } at the same time
    W environment steps                                              }
    the steps are appended to the replay

So environments and updates wait for each other only between turns, and what each of them sees does
not depend on how long the other took.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.files import write_json
from data_pipeline.observations import array_name
from data_pipeline.online_loader import OnlineBatches
from data_pipeline.replay import Replay, RowLayout
from data_pipeline.schema import from_json, read_json
from fql.agents.configs import FQLConfig
from fql.agents.registry import make_agent
from fql.compiled import abstract_state
from fql.devices import compiler_options
from fql.envs.tasks import find_task
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError
from fql.learner import Params, TrainState, split_seed
from fql.policies.evaluation import VIDEO_FPS, start_workers
from fql.policies.policy import Act, make_act
from fql.reports.plots import first_shown
from fql.reports.video import Recording, save_video
from fql.runs.checkpoints import CheckpointReader
from fql.runs.metrics_log import MetricsLog
from fql.runs.run_folder import RunFolder, finished_steps
from fql.runs.run_learner import (
    agent_of,
    make_online_learner,
    train_step_of,
    validation_of,
)
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig, setting_text
from fql.training.actors import Actors, EncodeObservations
from fql.training.loop import Trainer, Update, is_due, was_due
from fql.training.training_data import LabelledSplit, loader_config

# Large, so that it differs from the updates' numbers, by which the same key is split.
_ACTING = 2**31 + 0x616374

MAX_VIDEO_FRAMES = 300


@dataclass(frozen=True)
class OnlineRecord:
    """From what an online phase continues.

    Attributes:
        env_steps: environment steps made.
        rows: of the phase's log, see `MetricsLog.rows`.
        streams: of the replay, see `Replay.commit`.
        queues: of the environments, see `Actors.queues`.
    """

    env_steps: int
    rows: Mapping[str, int]
    streams: tuple[Mapping[str, Any], ...]
    queues: tuple[tuple[tuple[float, ...], ...], ...]


class OnlinePhase:
    """The turns of an online phase; see `fql.training.loop.Phase`.

    Attributes:
        done: environment steps made.
    """

    title = 'online'
    unit = 'step'

    def __init__(
        self,
        config: TrainConfig,
        replay: Replay,
        actors: Actors,
        batches: OnlineBatches,
        per_call: int,
        done: int,
        log: MetricsLog,
        warmup: Path,
    ) -> None:
        """The phase after `done` environment steps, whose rows replay and log hold.

        Args:
            warmup: the file `RunFolder.online_warmup`.
        """
        self._config, self._replay, self._actors = config, replay, actors
        self._log, self._warmup = log, warmup
        self._batches, self._per_call = batches, per_call
        self.done = done
        self._is_between_turns = True
        self._ask()

    @property
    def total(self) -> int:
        """Environment steps in all."""
        return self._config.online.online_steps

    def advance(self, state: TrainState, update: Update) -> TrainState:
        """See `fql.training.loop.Phase`."""
        self._is_between_turns = False
        chosen = self._actors.choose(state.params)
        most = self._per_call
        counts = [min(most, self._asked - made) for made in range(0, self._asked, most)]
        # A first call before waiting for the policy: the device continues with it at once.
        state = self._update(state, update, counts[:1])
        self._actors.begin(chosen)
        state = self._update(state, update, counts[1:])
        self._actors.finish()
        self.done += self._config.online.online_workers
        self._ask()
        self._is_between_turns = True
        return state

    def metadata(self) -> Mapping[str, Any]:
        """See `fql.training.loop.Phase`; what the checkpoint counts is on the disk then.

        Before the first update, the checkpoint of this state is of the offline phase; so the record
        is also written beside the replay.
        """
        if not self._is_between_turns:
            raise FQLError('a turn of the online phase was interrupted: no state to save')
        self._log.sync()
        record = OnlineRecord(
            self.done, self._log.rows, tuple(self._replay.commit()), self._actors.queues
        )
        if self.done <= self._config.online.online_warmup:
            write_json(self._warmup, vars(record))
        return {'online': vars(record)}

    def _ask(self) -> None:
        """Start making the batches of the next turn, from the rows that there are now."""
        online = self._config.online
        behind = self.done - online.online_warmup
        has_updates = behind >= 0 and self.done < online.online_steps
        per_turn = online.updates_per_env_step * online.online_workers
        first = self._config.steps + online.updates_per_env_step * max(behind, 0)
        self._asked = per_turn if has_updates else 0
        self._batches.ask(range(first, first + self._asked))

    def _update(self, state: TrainState, update: Update, counts: Sequence[int]) -> TrainState:
        for count in counts:
            state = update(state, [self._batches.take()[1] for _ in range(count)])
        return state


def start_actors(spec: RunSpec) -> EnvWorkers:
    """Start the environments of an online phase, which judge success as the data do.

    Raises:
        FQLError: see `fql.policies.evaluation.start_workers`; or there are several processes.
    """
    if jax.process_count() > 1:
        raise FQLError('the online phase is for one process: leave out --coordinator')
    config = dataclasses.replace(spec.config, success_timing='pre')
    count = config.online.online_workers
    return start_workers(spec, config, count, count)


def train_online(
    trainer: Trainer,
    state: TrainState,
    spec: RunSpec,
    data: LabelledSplit,
    workers: EnvWorkers,
    is_evaluation_missing: bool,
) -> tuple[TrainState, int]:
    """Make the online phase of a run, or continue it if `state` is of a checkpoint of it.

    See `fql.training.loop.Trainer.run`.

    Args:
        trainer: of the offline updates.
        state: after these, or that of a checkpoint of the online phase.
        data: frames and labels that the run was trained on.
        workers: of `start_actors`.

    Raises:
        DataError: the replay of the checkpoint is missing or damaged.
    """
    config, folder = spec.config, trainer.folder
    online = config.online
    record = saved_record(folder, int(state.step), config)
    done = record.env_steps if record else 0
    online_trainer = make_online_trainer(trainer, spec, data.has_latents)
    share = None if online.offline_ratio == 'uniform' else float(online.offline_ratio)
    with ExitStack() as stack:
        csv = folder.online_csv
        written = record.rows.get(csv.name, 0) if record else 0
        log = stack.enter_context(MetricsLog(csv, folder.online_tensorboard, done, written=written))
        replay = stack.enter_context(
            Replay(
                folder.replay,
                workers.spec.env_id,
                replay_layout(data, spec),
                online.online_workers,
                record.streams if record else None,
                spec.action_range,
            )
        )
        actors = Actors(
            workers,
            replay,
            make_acting(spec),
            jax.random.fold_in(state.key, _ACTING),
            config.seed,
            lambda metrics: log.write(phase.done + online.online_workers, metrics),
            make_encode_observations(spec, state.params) if data.has_latents else None,
        )
        if record:
            actors.bring_back(record.queues)
        else:
            actors.start()
        batches = stack.enter_context(
            OnlineBatches(
                data.split,
                data.rewards,
                data.masks,
                replay,
                share,
                loader_config(data, config),
                find_task(config.task).reward_offset,
            )
        )

        def evaluate(state: TrainState) -> None:
            trainer.evaluate(state)
            if spec.has_images:
                save_last_episode(folder, replay, int(state.step))

        per_call = online_trainer.train_step.per_call
        phase = OnlinePhase(
            config, replay, actors, batches, per_call, done, log, folder.online_warmup
        )
        online_trainer = dataclasses.replace(online_trainer, evaluate=evaluate)
        return online_trainer.run(state, phase, is_evaluation_missing)


def make_online_trainer(trainer: Trainer, spec: RunSpec, has_latents: bool) -> Trainer:
    """The trainer of the offline updates, with those of the online phase in their place."""
    config = spec.config
    per_turn = config.online.updates_per_env_step * config.online.online_workers
    learner = make_online_learner(spec)
    return dataclasses.replace(
        trainer,
        schedule=dataclasses.replace(config, steps=config.total_updates),
        train_step=train_step_of(
            spec,
            learner,
            abstract_state(learner, trainer.mesh, config.shard_params),
            has_latents,
            at_most=per_turn,
        ),
        validate=validation_of(spec, learner),
    )


def offline_state(config: TrainConfig, abstract: TrainState) -> TrainState:
    """The state that the offline run `online.source` had after `steps` updates.

    Later draws depend on this run's seed.

    Raises:
        FQLError: there is no such checkpoint, it is damaged, or of another agent.
    """
    reader = CheckpointReader(RunFolder(Path(config.online.source)).checkpoints)
    with reader.reading(config.steps) as step:
        state = reader.restore(abstract, step)
    _, key = split_seed(config.seed)
    return dataclasses.replace(state, key=jax.device_put(key, state.key.sharding))


def saved_record(folder: RunFolder, step: int, config: TrainConfig) -> OnlineRecord | None:
    """What `OnlinePhase.metadata` gave for the state of this step; None if it begins the phase.

    Raises:
        FQLError: the record of a phase without updates is damaged.
    """
    if step == config.steps and folder.online_warmup.exists():
        try:
            return read_json(folder.online_warmup, OnlineRecord)
        except ValueError as error:
            raise FQLError(
                f'{folder.online_warmup} is damaged: {error}; delete it, and the online phase '
                'begins anew'
            ) from None
    if step not in finished_steps(folder.checkpoints):
        return None
    online = CheckpointReader(folder.checkpoints).metadata(step).get('online')
    return None if online is None else from_json(OnlineRecord, online)


def is_evaluation_due(config: TrainConfig, step: int) -> bool:
    """Whether a run evaluates after this update, of either phase."""
    if step <= config.steps:
        return step > 0 and is_due(step, config.eval_interval, config.steps)
    per_turn = config.online.updates_per_env_step * config.online.online_workers
    return was_due(step - per_turn, step, config.eval_interval, config.total_updates)


def replay_layout(data: LabelledSplit, spec: RunSpec) -> RowLayout:
    """The layout of a row of a run's replay, as of its data."""
    latents = None
    if data.has_latents:
        latents = (data.split.observations.shape[1], spec.config.latent_cache)
    return RowLayout(spec.frame_shape, spec.observation_dtype, spec.action_dim, latents)


def make_encode_observations(spec: RunSpec, params: Params) -> EncodeObservations:
    """The function from observations to a frozen encoder's latents, in the cache's type.

    Args:
        params: of a state; they are copied, as updates donate them.
    """
    encoding, dtype = agent_of(spec).encoding, spec.config.latent_cache
    frozen = {'encoders': jax.tree.map(jnp.copy, params['encoders'])}
    encode = jax.jit(
        lambda params, shown: encoding.encode(params, 'critic', shown).astype(dtype),
        compiler_options=compiler_options(),
    )
    return lambda observations: np.asarray(encode(frozen, jax.tree.map(jnp.asarray, observations)))


def make_acting(spec: RunSpec) -> Act:
    """How the agent acts in the online phase."""
    online, settings = spec.config.online, spec.config.agent
    if online.exploration == 'ucb':
        # An upper confidence bound is pessimism with the other sign (Chen et al. 2017, 'UCB
        # Exploration via Q-Ensembles', arXiv 1706.01502).
        assert isinstance(settings, FQLConfig)
        settings = dataclasses.replace(
            settings,
            candidates=online.ucb_candidates,
            q_agg='mean',
            critic_pessimism=-online.ucb_beta,
        )
    agent = make_agent(settings, spec.shapes)
    return make_act(agent, agent.exploring_policy)


def save_last_episode(folder: RunFolder, replay: Replay, step: int) -> None:
    """Write a video of the first environment's last whole episode, if there is one.

    Of several observations, the first image is shown. Of a long episode, `MAX_VIDEO_FRAMES` evenly
    spaced frames are.
    """
    stream = replay.streams[0]
    ends = stream.episodes.ends
    if len(ends) == 0:
        return
    first = int(ends[-2]) + 1 if len(ends) > 1 else 0
    length = int(ends[-1]) + 1 - first
    name, frames = first_shown(stream.read_frames(first, first + 1))
    if frames.shape[-1] == 3:
        folder.videos.mkdir(exist_ok=True)
        count = min(length, MAX_VIDEO_FRAMES)
        steps = np.linspace(0, length - 1, count).round().astype(int).tolist()
        # One by one: all frames of a long episode may not fit into memory.
        rows = [first + step for step in steps]
        frames = np.concatenate([stream.read(array_name(name), row, row + 1) for row in rows])
        recording = Recording(len(ends) - 1, frames, steps, np.nan)
        save_video(folder.videos / f'online-{step}.gif', [recording], VIDEO_FPS)


def describe_online(config: TrainConfig) -> str:
    """A line that describes the online phase."""
    online = config.online
    ratio = online.offline_ratio
    parts = [
        f'{online.online_steps:,} environment steps in {online.online_workers} environment(s)',
        f'{online.updates_per_env_step} update(s) a step',
        'data and replay as one' if ratio == 'uniform' else f'{ratio:.0%} of a batch from the data',
    ]
    if online.alpha is not None:
        parts.append(f'alpha {setting_text(online.alpha)}')
    if online.online_warmup:
        parts.append(f'none in the first {online.online_warmup:,}')
    if online.exploration != 'none':
        parts.append(f'exploration {online.exploration}')
    return ', '.join(parts)
