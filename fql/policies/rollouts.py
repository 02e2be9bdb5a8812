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

Policy = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
"""(observations (n, ...), or several by name, episodes (n,) int32, timesteps (n,) int32) -> actions
(n, h, action_dim), which are executed one after the other. n is the number of workers. Noise that
depends on (episode, timestep) alone makes a rollout the same whatever the number of workers."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The results of a number of episodes, in the order of the episodes.

    Attributes:
        returns: (episodes,) float64 undiscounted sums of rewards.
        lengths: (episodes,) int32 steps.
        successes: (episodes,) float64 `info['success']` of each episode's last step; 0 where it
            lacks one and other episodes have one, NaN where none has.
        seeds: (episodes,) int64 seeds that reset the environment.
        recordings: the first episodes; none where the environment cannot be drawn.
    """

    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray
    seeds: np.ndarray
    recordings: list[Recording]

    @property
    def success(self) -> float:
        """The mean of `successes`; NaN where the environment reports no success."""
        return float(self.successes.mean())


RENDER_EVERY = 5
"""Steps between the pictures of an episode whose observations are no pictures: on CPUs, rendering
one takes longer than a step on vectors."""


@dataclass
class _Episode:
    rewards: list[float] = field(default_factory=list)
    has_ended: bool = False
    success: float = np.nan
    actions: deque[np.ndarray] = field(default_factory=deque)  # Chosen, not executed yet.
    frames: list[np.ndarray] = field(default_factory=list)
    frame_steps: list[int] = field(default_factory=list)


class _Rollouts:
    """The episodes of an evaluation, and the workers that run them.

    Attributes:
        records: of all episodes, in their order.
        running: worker -> its episode.
        undrawn: why there are no pictures; empty while there is no reason.
    """

    def __init__(
        self,
        workers: EnvWorkers,
        episodes: int,
        record_episodes: int,
        notify: Callable[[str], None],
    ) -> None:
        """All episodes wait for a worker; for the other arguments see `evaluate`."""
        self._workers, self._record_episodes, self._notify = workers, record_episodes, notify
        self.records = [_Episode() for _ in range(episodes)]
        self.running: dict[int, int] = {}
        self.undrawn = ''
        self._waiting = deque(range(episodes))
        self._repeated: set[int] = set()
        self._observations = map_named(
            lambda shape, dtype: np.empty((workers.num_workers, *shape), dtype),
            workers.observation_shape,
            workers.observation_dtype,
        )

    @property
    def num_ended(self) -> int:
        """How many episodes have ended."""
        return len(self.records) - len(self._waiting) - len(self.running)

    def start(self, seed: int) -> None:
        """Give each idle worker the next episode, episode i from the seed `seed + i`."""
        idle = [row for row in range(self._workers.num_workers) if row not in self.running]
        new = {worker: self._waiting.popleft() for worker in idle[: len(self._waiting)]}
        self.running |= new
        firsts = self._workers.reset({worker: seed + episode for worker, episode in new.items()})
        for worker, first in firsts.items():
            self._show(worker, first)
        self._repeat(new.keys() - firsts.keys())
        self._record_frames(firsts)

    def choose(self, policy: Policy) -> None:
        """Call the policy if a running episode has no action left to execute."""
        if all(self._record(worker).actions for worker in self.running):
            return
        workers = range(self._workers.num_workers)
        rows = [row if row in self.running else min(self.running) for row in workers]
        episodes = np.array([self.running[row] for row in rows], np.int32)
        timesteps = np.array([len(self._record(row).rewards) for row in rows], np.int32)
        chosen = map_named(itemgetter(rows), self._observations)
        # Sent as a JAX array, an action would make the worker import JAX.
        actions = np.asarray(policy(chosen, episodes, timesteps))
        for worker in self.running:
            record = self._record(worker)
            if not record.actions:
                record.actions.extend(actions[worker])

    def step(self) -> None:
        """Execute an action in each running episode; those that end release their workers."""
        steps = self._workers.step(
            {worker: self._record(worker).actions.popleft() for worker in self.running}
        )
        self._repeat(self.running.keys() - steps.keys())
        for worker, step in steps.items():
            record = self._record(worker)
            record.rewards.append(step.reward)
            record.success = step.success
            record.has_ended = step.terminated or step.truncated
            self._show(worker, step.observation)
        self._record_frames(steps)
        for worker in steps:
            if worker in self.running and self._record(worker).has_ended:
                del self.running[worker]

    def recordings(self) -> list[Recording]:
        """The first episodes; none where the environment cannot be drawn."""
        return [
            Recording(episode, np.stack(record.frames), record.frame_steps, record.success)
            for episode, record in enumerate(
                self.records[: 0 if self.undrawn else self._record_episodes]
            )
        ]

    def _record(self, worker: int) -> _Episode:
        return self.records[self.running[worker]]

    def _show(self, worker: int, observation: Any) -> None:
        for name, rows in named(self._observations).items():
            rows[worker] = named(observation)[name]

    def _repeat(self, lost: Iterable[int]) -> None:
        """Let the episodes of these workers wait again; raise FQLError at a second time."""
        for worker in sorted(lost):
            episode = self.running.pop(worker)
            place = (
                f'worker {worker} of {self._workers.spec.env_id} {self._workers.lost[worker]} '
                f'in episode {episode}'
            )
            if episode in self._repeated:
                raise FQLError(f'{place}, for the second time')
            self._notify(f'{place}, which is repeated by a new worker')
            self._repeated.add(episode)
            self.records[episode] = _Episode()
            self._waiting.appendleft(episode)

    def _record_frames(self, workers: Iterable[int]) -> None:
        """Record what these workers show, where it is due."""
        if self.undrawn:
            return
        due = [worker for worker in workers if self._is_frame_due(worker)]
        frames = _frames(self._workers, self._observations, due)
        for worker, frame in frames.items():
            if isinstance(frame, str):
                self.undrawn = self.undrawn or frame
            else:
                record = self._record(worker)
                record.frames.append(frame)
                record.frame_steps.append(len(record.rewards))
        self._repeat(set(due) - frames.keys())

    def _is_frame_due(self, worker: int) -> bool:
        if worker not in self.running or self.running[worker] >= self._record_episodes:
            return False
        record = self._record(worker)
        every = 1 if _shows_pictures(self._workers) else RENDER_EVERY
        return len(record.rewards) % every == 0 or record.has_ended


def evaluate(
    workers: EnvWorkers,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    record_episodes: int = 0,
    progress: Callable[[int, int], None] = lambda ended, episodes: None,
    notify: Callable[[str], None] = lambda notice: None,
) -> EvaluationResult:
    """Run episodes 0 .. episodes - 1, episode i from the seed `seed + i`.

    The workers step together, and one that ends its episode takes the next. The policy always
    gets one row per worker, so that it is compiled once; the rows of idle workers repeat
    another's, and their actions are dropped. A policy that gives several actions for an
    observation is called again when all of them are executed, or the episode has ended. An
    episode whose worker hangs or dies is repeated, once.

    Args:
        workers: the environments.
        policy: see `Policy`.
        episodes: how many, at least 1.
        seed: of the first episode.
        record_episodes: how many of the first episodes to record.
        progress: called with (episodes ended, episodes) after each end.
        notify: called with a line about each episode that is repeated.

    Raises:
        FQLError: an environment failed, a worker was lost twice in an episode, or `episodes` is not
            positive.
    """
    if episodes < 1:
        raise FQLError(f'episodes must be at least 1, not {episodes}')
    rollouts = _Rollouts(workers, episodes, record_episodes, notify)
    while (ended := rollouts.num_ended) < episodes:
        rollouts.start(seed)
        if not rollouts.running:  # All were lost at their start.
            continue
        rollouts.choose(policy)
        rollouts.step()
        for count in range(ended, rollouts.num_ended):
            progress(count + 1, episodes)

    if rollouts.undrawn:
        notify(f'no video: {rollouts.undrawn}')
    records = rollouts.records
    successes = np.array([record.success for record in records])
    unknown = np.isnan(successes)
    if unknown.any() and not unknown.all():
        notify(
            f'{workers.spec.env_id} reports no success in {unknown.sum()} of {episodes} episodes, '
            'which count as failures'
        )
        successes[unknown] = 0.0
    return EvaluationResult(
        returns=np.array([sum(record.rewards) for record in records]),
        lengths=np.array([len(record.rewards) for record in records], np.int32),
        successes=successes,
        seeds=seed + np.arange(episodes),
        recordings=rollouts.recordings(),
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


def _shows_pictures(workers: EnvWorkers) -> bool:
    """Whether an observation is an image, grey or RGB, that shows all there is to see."""
    shape = workers.observation_shape
    is_image = not isinstance(shape, dict) and len(shape) == 3
    return is_image and shape[-1] // workers.spec.frame_stack in (1, 3) and not workers.hides_goal


def _frames(
    workers: EnvWorkers, observations: Any, indices: list[int]
) -> Mapping[int, np.ndarray | str]:
    """Pictures (h, w, 3) uint8 of the workers' states, or why there are none.

    The newest image they sent, if that shows all there is to see; else one is rendered.
    """
    if not _shows_pictures(workers):
        return workers.render(indices)
    channels = workers.observation_shape[-1] // workers.spec.frame_stack
    return {
        index: observations[index, ..., -channels:].repeat(3 // channels, axis=-1)
        for index in indices
    }
