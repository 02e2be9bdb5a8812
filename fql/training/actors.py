"""Environments that are stepped in lock-step by one policy, and fill a replay."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipeline.observations import map_named, named
from data_pipeline.replay import Replay
from fql.envs.workers import EnvWorkers, Step
from fql.errors import FQLError
from fql.learner import Params
from fql.policies.policy import Act

MAX_REPLACED = 10
"""Workers that may die or hang, in one run of the program, before it stops."""

EncodeObservations = Callable[[Any], np.ndarray]
"""(observations (W, ...), or several by name) -> latents (W, d)."""
Report = Callable[[Mapping[str, float]], None]
"""Called with the metrics of an episode that has ended."""


@dataclass
class _Episode:
    """An episode in progress.

    Attributes:
        number: episodes of the environment before it.
        observation: the newest one, a stack; of several arrays, stacks by name.
        latents: of the observation, where they are stored.
        success: of the last step; NaN before the first.
        queue: actions still to execute before the policy is called again.
    """

    number: int
    observation: Any
    latents: np.ndarray | None = None
    length: int = 0
    sum_of_rewards: float = 0.0
    success: float = np.nan
    queue: deque[np.ndarray] = field(default_factory=deque)


def episode_seed(seed: int, environment: int, number: int) -> int:
    """The seed in [0, 2**32) that resets an environment for its episode `number`, from a run's."""
    return int(np.random.SeedSequence((seed, environment, number)).generate_state(1)[0])


class Actors:
    """The environments, their open episodes, and the policy that acts in all of them.

    A turn is `choose`, `begin`, `finish`: the policy is computed, the environments step, their
    steps are appended to the replay, and those whose episode has ended are reset. What the policy
    draws depends on (key, environment, episode, step) alone.
    """

    def __init__(
        self,
        workers: EnvWorkers,
        replay: Replay,
        act: Act,
        key: jax.Array,
        seed: int,
        report: Report,
        encode: EncodeObservations | None = None,
    ) -> None:
        """Take over `workers`, one for each stream of the replay.

        Args:
            key: of the policy's draws.
            seed: of the environments' resets.
            report: called with the metrics of each episode that has ended.
            encode: gives the latents of observations, which are stored beside them, and which the
                policy reads in their place.
        """
        self._workers, self._streams = workers, replay.streams
        self._act, self._key, self._seed, self._report = act, key, seed, report
        self._encode = encode
        self._episodes: dict[int, _Episode] = {}
        self._replaced = 0

    def start(self) -> None:
        """Begin the first episode of every environment."""
        self._begin_episodes(range(len(self._streams)))

    def bring_back(self, queues: Sequence[Sequence[Sequence[float]]]) -> None:
        """Bring the environments to where the replay ends: reset and step as recorded there.

        An environment that does not repeat its record, or whose worker dies or hangs, is reported,
        and begins a new episode.

        Args:
            queues: what `queues` gave when the replay ended there.
        """
        self._episodes = self._reset(range(len(self._streams)))
        repeated, strayed = self._repeat_recorded_steps()
        for index in repeated:
            stream, episode = self._streams[index], self._episodes[index]
            if index in strayed or not self._shows_stored_frame(index):
                tqdm.write(
                    f'environment {index} is not deterministic: after a reset with its seed and '
                    f'the {stream.rows - 1 - stream.episodes.open_first} recorded actions of its '
                    'episode, its observation is not the stored one; it begins a new episode, and '
                    'this run is no longer exactly the one that was interrupted'
                )
                stream.cut_off()
                self._begin_episodes([index])
            else:
                episode.queue.extend(np.asarray(queues[index], np.float32))
                if self._encode is not None:
                    episode.latents = stream.read('latents', stream.rows - 1, stream.rows)[0]

    def _repeat_recorded_steps(self) -> tuple[list[int], set[int]]:
        """Step the environments, which were reset, as recorded in their open episodes.

        One whose worker dies or hangs begins a new episode.

        Returns:
            The other environments; and those of them whose episode ended before its record.
        """
        recorded = {}
        for index, stream in enumerate(self._streams):
            first = stream.episodes.open_first
            recorded[index] = stream.read('actions', first, stream.rows - 1)
        strayed = set()
        for timestep in range(max(len(actions) for actions in recorded.values())):
            acting = {
                index: actions[timestep]
                for index, actions in recorded.items()
                if timestep < len(actions) and index not in strayed
            }
            self._workers.begin_steps(acting)
            steps = self._workers.finish_steps(acting)
            for index in acting.keys() - steps.keys():
                self._drop(index)
                self._begin_episodes([index])
                del recorded[index]
            for index, step in steps.items():
                self._note(index, step)
                is_last = timestep == len(recorded[index]) - 1
                if (step.terminated or step.truncated) and not is_last:
                    strayed.add(index)
        return list(recorded), strayed

    def _shows_stored_frame(self, index: int) -> bool:
        """Whether an environment shows what the replay's last row holds."""
        stream = self._streams[index]
        shown = named(self._newest_frame(index, self._episodes[index].observation))
        stored = named(stream.read_frames(stream.rows - 1, stream.rows))
        return all(np.array_equal(shown[name], frame) for name, (frame,) in stored.items())

    @property
    def queues(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """The actions still to execute in each environment, as JSON values."""
        return tuple(
            tuple(tuple(action.tolist()) for action in self._episodes[index].queue)
            for index in range(len(self._streams))
        )

    def choose(self, params: Params) -> jax.Array | None:
        """Start computing the policy, (W, h, a), if any environment needs it; do not wait."""
        episodes = [self._episodes[index] for index in range(len(self._streams))]
        if all(episode.queue for episode in episodes):
            return None
        numbers = [len(episodes) * episode.number + i for i, episode in enumerate(episodes)]
        shown = [
            episode.observation if episode.latents is None else episode.latents
            for episode in episodes
        ]
        return self._act(
            params,
            self._key,
            map_named(lambda *arrays: jnp.asarray(np.stack(arrays)), *shown),
            jnp.asarray(numbers, jnp.int32),
            jnp.asarray([episode.length for episode in episodes], jnp.int32),
        )

    def begin(self, chosen: jax.Array | None) -> None:
        """Wait for the policy, and have every environment step."""
        if chosen is not None:
            # Sent as a JAX array, an action would make the worker import JAX.
            actions = np.asarray(chosen)
            for index, episode in self._episodes.items():
                if not episode.queue:
                    episode.queue.extend(actions[index])
        self._acting = {index: episode.queue.popleft() for index, episode in self._episodes.items()}
        self._workers.begin_steps(self._acting)

    def finish(self) -> None:
        """Wait for the environments, append their steps, and reset those that have ended.

        Raises:
            FQLError: an environment raised an exception or gave what is not finite or of another
                shape, or workers died again and again. Nothing was appended then.
            DataError: the disk is full, or the like.
        """
        steps = self._workers.finish_steps(self._acting)
        shown = {index: step.observation for index, step in steps.items()}
        latents = self._latents(shown)
        over = []
        for index in self._acting:
            stream, episode = self._streams[index], self._episodes[index]
            if index not in steps:
                self._drop(index)
                over.append(index)
                continue
            step = steps[index]
            ends = step.terminated or step.truncated
            stream.step(
                self._acting[index],
                step.reward,
                float(not step.terminated),
                self._newest_frame(index, step.observation),
                ends,
                latents.get(index),
            )
            episode.latents = latents.get(index)
            self._note(index, step)
            if ends:
                self._report(
                    {
                        'environment': index,
                        'episode': episode.number,
                        'success': episode.success,
                        'return': episode.sum_of_rewards,
                        'length': episode.length,
                    }
                )
                over.append(index)
        self._begin_episodes(over)

    def _note(self, index: int, step: Step) -> None:
        episode = self._episodes[index]
        episode.observation = step.observation
        episode.length += 1
        episode.sum_of_rewards += step.reward
        episode.success = step.success

    def _begin_episodes(self, indices: Sequence[int]) -> None:
        begun = self._reset(indices)
        latents = self._latents({index: episode.observation for index, episode in begun.items()})
        for index, episode in begun.items():
            episode.latents = latents.get(index)
            self._episodes[index] = episode
            frame = self._newest_frame(index, episode.observation)
            self._streams[index].start(frame, episode.latents)

    def _latents(self, observations: Mapping[int, Any]) -> dict[int, np.ndarray]:
        """The latents of some environments' observations; nothing where none are stored."""
        if self._encode is None or not observations:
            return {}
        # Always for all environments, so that one program computes all.
        filler = next(iter(observations.values()))
        rows = [observations.get(index, filler) for index in range(len(self._streams))]
        latents = self._encode(map_named(lambda *arrays: np.stack(arrays), *rows))
        return {index: latents[index] for index in observations}

    def _reset(self, indices: Sequence[int]) -> dict[int, _Episode]:
        numbers = {index: len(self._streams[index].episodes.ends) for index in indices}
        seeds = {
            index: episode_seed(self._seed, index, number) for index, number in numbers.items()
        }
        firsts: dict[int, Any] = {}
        while waiting := {index: seed for index, seed in seeds.items() if index not in firsts}:
            firsts |= self._workers.reset(waiting)
            for index in waiting.keys() - firsts.keys():
                self._count_loss(index, f', reset with seed {seeds[index]}')
        return {index: _Episode(numbers[index], firsts[index]) for index in indices}

    def _newest_frame(self, index: int, observation: Any) -> Any:
        """Of a stack, the frame that the replay stores."""
        shapes = self._streams[index].layout.frame_shape
        return map_named(lambda stack, shape: stack[..., -shape[-1] :], observation, shapes)

    def _drop(self, index: int) -> None:
        """End an episode whose worker was lost and replaced."""
        episode = self._episodes[index]
        self._count_loss(index, f', episode {episode.number}, step {episode.length}')
        self._streams[index].cut_off()

    def _count_loss(self, index: int, place: str) -> None:
        """Report a worker that was replaced; raise FQLError if there were too many."""
        self._replaced += 1
        fault = (
            f'environment {self._workers.spec.env_id} (worker {index}{place}) '
            f'{self._workers.lost[index]}'
        )
        if self._replaced > MAX_REPLACED:
            raise FQLError(f'{fault}; {MAX_REPLACED} workers were replaced before, the limit')
        tqdm.write(
            f'{fault}; a new worker takes its place '
            f'(number {self._replaced} of at most {MAX_REPLACED})'
        )
