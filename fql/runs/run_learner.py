"""From a run's stored settings to its learner, its batches, and its compiled functions."""

import dataclasses
from collections.abc import Callable

import jax

from fql.agents.base import Agent
from fql.agents.registry import make_agent
from fql.augmentation import augment_frames
from fql.batch import LOADED_FIELDS, Batch, batch_from_inputs
from fql.compiled import Arrays, Prepare, TrainStep, make_train_step
from fql.devices import compiler_options
from fql.learner import Learner, Metrics, TrainState, make_optimizer, scaled_encoders
from fql.runs.run_spec import RunSpec


def agent_of(spec: RunSpec) -> Agent:
    """The agent that a run trains."""
    return make_agent(spec.config.agent, spec.shapes)


def make_learner(spec: RunSpec) -> Learner:
    """The agent that a run trains, and its optimiser."""
    agent = spec.config.agent
    return Learner(agent_of(spec), make_optimizer(agent.lr, agent.encoder))


def make_online_learner(spec: RunSpec) -> Learner:
    """The learner of the online phase; its state is that of `make_learner`."""
    online, agent = spec.config.online, spec.config.agent
    if online.alpha is not None:
        agent = dataclasses.replace(agent, alpha=online.alpha)  # type: ignore[call-arg]
    optimizer = make_optimizer(agent.lr, agent.encoder)
    if online.encoder_lr_multiplier != 1:
        optimizer = scaled_encoders(optimizer, online.encoder_lr_multiplier)
    return Learner(make_agent(agent, spec.shapes), optimizer)


def loaded_fields(agent: Agent) -> tuple[str, ...]:
    """The loader's arrays that an update reads."""
    return (*LOADED_FIELDS, *sorted(agent.needs))


def batch_preparer(spec: RunSpec) -> Prepare:
    """The function from the loader's arrays to the augmented batch of an update."""
    horizon, augmentation = agent_of(spec).horizon, spec.config.augmentation

    def prepare(arrays: Arrays, key: jax.Array, step: jax.Array) -> Batch:
        inputs = augment_frames(arrays['inputs'], augmentation, key, step)
        return batch_from_inputs({**arrays, 'inputs': inputs}, horizon)

    return prepare


def train_step_of(
    spec: RunSpec,
    learner: Learner,
    abstract: TrainState,
    has_latents: bool = False,
    at_most: int | None = None,
) -> TrainStep:
    """The compiled updates of a run, on its observations or on the cached latents of these.

    Args:
        learner: of the run's phase.
        abstract, at_most: see `fql.compiled.make_train_step`.
    """
    return make_train_step(
        learner,
        batch_preparer(spec),
        abstract,
        spec.config.updates_per_call,
        has_convolutions=spec.has_images and not has_latents,
        at_most=at_most,
    )


def validation_of(spec: RunSpec, learner: Learner) -> Callable[[TrainState, Arrays], Metrics]:
    """The jitted function (state, the loader's arrays) -> metrics, without augmentation.

    Args:
        learner: of the run's phase.
    """
    horizon = agent_of(spec).horizon

    def validate(state: TrainState, arrays: Arrays) -> Metrics:
        return learner.validate(state, batch_from_inputs(arrays, horizon))

    return jax.jit(validate, compiler_options=compiler_options())
