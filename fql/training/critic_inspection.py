"""The critics of a run on states and actions of its data: values, action gaps, disagreement."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import num_starts
from fql.batch import batch_from_inputs
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.output import format_table, print_notice
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import read_spec
from fql.runs.run_start import check_data
from fql.training.training_data import load_training_data, loader_config, store_of, training_batches
from fql.training.verified_data import verify_once

DIRECTIONS = 16
"""Unit actions that are compared where an action has two numbers."""
RANDOM_ACTIONS = 64
"""Uniform actions that are compared elsewhere."""


@dataclass(frozen=True, eq=False)
class CriticInspection:
    """The critics of a checkpoint on n states of the data.

    Attributes:
        step: the update.
        values: (n,) mean over the critics of Q at the policy's action, its noise zero.
        disagreements: (n,) standard deviation over the critics of the same.
        actions: (m, a) the actions that are compared.
        advantages: (n, m) mean over the critics of Q, less its mean over these actions.
        positions: (n, 2) where the agent is, in mazes; None elsewhere.
    """

    step: int
    values: np.ndarray
    disagreements: np.ndarray
    actions: np.ndarray
    advantages: np.ndarray
    positions: np.ndarray | None

    @property
    def gaps(self) -> np.ndarray:
        """(n,) the action gap: the best action's advantage over their mean."""
        return self.advantages.max(axis=1)


def inspect_critic(
    path: Path, step: int | None, states: int, data_dir: str = ''
) -> CriticInspection:
    """Evaluate the critics of a run on transitions of its training data, drawn by its seed.

    Args:
        step: which checkpoint; None for the newest that is sound.
        states: how many, at most; all where the data have fewer.
        data_dir: where the data are, if not where the run found them.

    Raises:
        FQLError: no run, no sound checkpoint, an agent without critics, or other data than the
            run's.
        DataError: the data are not there, or damaged.
    """
    folder = RunFolder(path)
    spec = read_spec(folder)
    agent = agent_of(spec)
    if 'critic' not in agent.heads:
        raise FQLError(f'{path}: agent {spec.config.agent.name} has no critics')
    step, params = restore_params(folder, spec, step, print_notice)
    config = dataclasses.replace(
        spec.config, shift_probability=0.0, data_dir=data_dir or spec.config.data_dir
    )
    splits = load_training_data(config)
    store = store_of(splits)
    check_data(folder, store)
    verify_once(store)
    data = splits['train']
    states = min(states, num_starts(data.split, loader_config(data, config)))
    arrays = next(training_batches(data, dataclasses.replace(config, batch_size=states), 0))
    observations = batch_from_inputs(arrays, agent.horizon).observations

    chunk = agent.heads['critic'].inputs[0] // spec.action_dim
    actions = compared_actions(spec.action_dim, spec.config.seed)

    @jax.jit
    def evaluate(params: dict, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents = agent.encoding.encode(params, 'critic', observations)
        noise = jnp.zeros((states, *agent.noise_shape))
        chosen = agent.act(params, observations, noise, agent.policies[0]).reshape(states, -1)
        # An action is held for the length of a chunk.
        held = jnp.tile(jnp.asarray(actions), (1, chunk))
        compared = jax.lax.map(
            lambda action: agent.qs(
                params, latents, jnp.broadcast_to(action, (states, action.size))
            ).mean(axis=0),
            held,
        )
        return agent.qs(params, latents, chosen), compared

    of_policy, compared = map(np.asarray, evaluate(params, observations))
    return CriticInspection(
        step=step,
        values=of_policy.mean(axis=0),
        disagreements=of_policy.std(axis=0),
        actions=actions,
        advantages=(compared - compared.mean(axis=0)).T,
        positions=maze_positions(spec.config.task, data.split.info, arrays['indices']),
    )


def compared_actions(size: int, seed: int) -> np.ndarray:
    """Actions (m, size) float32: the unit circle's where an action has two numbers, else random."""
    if size == 2:
        angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return np.random.default_rng(seed).uniform(-1, 1, (RANDOM_ACTIONS, size)).astype(np.float32)


def maze_positions(task: str, info: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray | None:
    """The first two numbers of qpos, in mazes, where the data have them."""
    if 'maze' not in find_task(task).env_id or 'qpos' not in info:
        return None
    return np.asarray(info['qpos'][rows][:, :2])


def describe_inspection(path: Path, inspection: CriticInspection) -> str:
    """A table of what the critics give."""
    count = len(inspection.actions)
    rows = {
        "value of the policy's action": inspection.values,
        f'action gap: best of {count} actions less their mean': inspection.gaps,
        "disagreement of the critics on the policy's action (std)": inspection.disagreements,
    }
    table = format_table(
        ('', '10 %', 'median', '90 %'),
        [
            (name, *(f'{value:.3f}' for value in np.quantile(values, (0.1, 0.5, 0.9))))
            for name, values in rows.items()
        ],
    )
    clear = (inspection.gaps > inspection.disagreements).mean()
    return (
        f'{path}, update {inspection.step:,}, {len(inspection.values):,} states of its data\n'
        f'{table}\n'
        f'states whose action gap exceeds the disagreement: {clear:.0%}'
    )
