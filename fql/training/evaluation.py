"""Rollouts of a policy in environment workers."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from data_pipeline.observations import map_named, named
from fql.envs.workers import EnvWorkers
from fql.errors import FQLError
from fql.reports.video import Recording

# (observations (n, ...), or several by name, episodes (n,) int32, timesteps (n,) int32) -> actions
# (n, h, action_dim), which are executed one after the other. n is the number of workers. Noise that
# depends on (episode, timestep) alone makes a rollout the same whatever the number of workers.
Policy = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The results of a number of episodes, in the order of the episodes.

    Attributes:
        success: the mean of `successes`; NaN where the environment reports no success.
        returns: (episodes,) float64 undiscounted sums of rewards.
        lengths: (episodes,) int32 steps.
        successes: (episodes,) float64 `info['success']` of each episode's last step.
        seeds: (episodes,) int64 seeds that reset the environment.
        recordings: the first episodes; none where the environment cannot be drawn.
    """

    success: float
    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray
    seeds: np.ndarray
    recordings: list[Recording]


RENDER_EVERY = 5
"""Steps between the pictures of an episode whose observations are not one image: on CPUs, rendering
one takes longer than a step on vectors."""


@dataclass
class _Episode:
    rewards: list[float] = field(default_factory=list)
    has_ended: bool = False
    frame_steps: list[int] = field(default_factory=list)
    success: float = np.nan
    frames: list[np.ndarray] = field(default_factory=list)


def evaluate(
    workers: EnvWorkers,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    record_episodes: int = 0,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] = lambda notice: None,
) -> EvaluationResult:
    """Run episodes 0 .. episodes - 1, episode i from the seed `seed + i`.

    The workers step together, and one that ends its episode takes the next. The policy always
    gets one row per worker, so that it is compiled once; the rows of idle workers repeat
    another's, and their actions are dropped. A policy that gives several actions for an
    observation is called again when all of them are executed, or the episode has ended. An
    episode whose worker hangs is repeated, once.

    Args:
        workers: the environments.
        policy: see `Policy`.
        episodes: how many, at least 1.
        seed: of the first episode.
        record_episodes: how many of the first episodes to record.
        progress: called with (episodes ended, episodes) after each end.
        notify: called with a line about each episode that is repeated.

    Raises:
        FQLError: a worker failed, or hung twice in an episode, or `episodes` is not positive.
    """
    if episodes < 1:
        raise FQLError(f'episodes must be at least 1, not {episodes}')
    records = [_Episode() for _ in range(episodes)]
    waiting = deque(range(episodes))
    running: dict[int, int] = {}  # worker -> its episode
    repeated: set[int] = set()  # episodes whose worker hung
    undrawn: list[str] = []  # why nothing is recorded
    queues: dict[int, deque[np.ndarray]] = {}  # worker -> actions that it still has to execute
    observations = map_named(
        lambda shape, dtype: np.empty((workers.num_workers, *shape), dtype),
        workers.observation_shape,
        workers.observation_dtype,
    )

    def show(worker: int, observation: Any) -> None:
        for name, rows in named(observations).items():
            rows[worker] = named(observation)[name]

    def repeat(hung: Iterable[int]) -> None:
        for worker in sorted(hung):
            episode = running.pop(worker)
            slow = f'{workers.spec.env_id} took longer than {workers.step_seconds:g} s for a step'
            if episode in repeated:
                raise FQLError(
                    f'{slow} of episode {episode}, for the second time; '
                    '--env-step-seconds sets the limit'
                )
            notify(f'{slow}: worker {worker} is replaced and episode {episode} repeated')
            repeated.add(episode)
            records[episode] = _Episode()
            waiting.appendleft(episode)

    def is_due(record: _Episode) -> bool:
        every = 1 if _shows_images(workers) else RENDER_EVERY
        return len(record.rewards) % every == 0 or record.has_ended

    def record_frames(of: Iterable[int]) -> None:
        if undrawn:
            return
        recorded = [
            row
            for row in of
            if row in running and running[row] < record_episodes and is_due(records[running[row]])
        ]
        frames = _frames(workers, observations, recorded)
        for worker, frame in frames.items():
            if isinstance(frame, str):
                undrawn.append(frame)
            else:
                record = records[running[worker]]
                record.frames.append(frame)
                record.frame_steps.append(len(record.rewards))
        repeat(set(recorded) - frames.keys())

    while waiting or running:
        idle = [worker for worker in range(workers.num_workers) if worker not in running]
        new = {worker: waiting.popleft() for worker in idle[: len(waiting)]}
        running |= new
        queues |= {worker: deque() for worker in new}
        firsts = workers.reset({worker: seed + episode for worker, episode in new.items()})
        for worker, first in firsts.items():
            show(worker, first)
        repeat(new.keys() - firsts.keys())
        record_frames(firsts)
        if not running:
            continue

        if any(not queues[worker] for worker in running):
            rows = [row if row in running else min(running) for row in range(workers.num_workers)]
            ids = np.array([running[row] for row in rows], np.int32)
            timesteps = np.array([len(records[running[row]].rewards) for row in rows], np.int32)
            # Sent as a JAX array, an action would make the worker import JAX.
            chosen = map_named(itemgetter(rows), observations)
            actions = np.asarray(policy(chosen, ids, timesteps))
            for worker in running:
                if not queues[worker]:
                    queues[worker].extend(actions[worker])
        steps = workers.step({worker: queues[worker].popleft() for worker in running})
        repeat(running.keys() - steps.keys())
        for worker, step in steps.items():
            record = records[running[worker]]
            record.rewards.append(step.reward)
            record.success = step.success
            record.has_ended = step.terminated or step.truncated
            show(worker, step.observation)
        record_frames(steps)

        for worker in steps:
            if worker in running and records[running[worker]].has_ended:
                del running[worker]
                if progress is not None:
                    progress(episodes - len(waiting) - len(running), episodes)

    if undrawn:
        notify(f'no video: {undrawn[0]}')
    successes = np.array([record.success for record in records])
    return EvaluationResult(
        success=float(successes.mean()),
        returns=np.array([sum(record.rewards) for record in records]),
        lengths=np.array([len(record.rewards) for record in records], np.int32),
        successes=successes,
        seeds=seed + np.arange(episodes),
        recordings=[
            Recording(episode, np.stack(record.frames), record.frame_steps, record.success)
            for episode, record in enumerate(records[: 0 if undrawn else record_episodes])
        ],
    )


def random_policy(action_dim: int, seed: int) -> Policy:
    """Actions (n, 1, action_dim) in [-1, 1], float32, uniform by (seed, episode, timestep)."""

    def policy(_: Any, episodes: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                np.random.default_rng((seed, episode, timestep)).uniform(-1, 1, (1, action_dim))
                for episode, timestep in zip(episodes.tolist(), timesteps.tolist(), strict=True)
            ]
        ).astype(np.float32)

    return policy


def _shows_images(workers: EnvWorkers) -> bool:
    """Whether an observation is an image, not a vector or several arrays."""
    shape = workers.observation_shape
    return not isinstance(shape, dict) and len(shape) == 3


def _frames(
    workers: EnvWorkers, observations: Any, indices: list[int]
) -> Mapping[int, np.ndarray | str]:
    """Pictures of the workers' states, or why there are none.

    The newest image they sent, if that shows all there is to see; else one is rendered.
    """
    if not _shows_images(workers) or workers.hides_goal:
        return workers.render(indices)
    channels = workers.observation_shape[-1] // workers.spec.frame_stack
    return {index: observations[index, ..., -channels:].copy() for index in indices}
