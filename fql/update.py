"""One gradient step."""

import dataclasses

import jax
import optax

from fql.batch import Batch
from fql.config import AgentConfig
from fql.latents import encode_batch
from fql.losses import Draws, Metrics, sample_draws, total_loss
from fql.networks import Networks, Params
from fql.train_state import TrainState, critic_params, make_optimizer, trainable_params


def losses(
    networks: Networks,
    config: AgentConfig,
    params: Params,
    target_params: Params,
    batch: Batch,
    draws: Draws,
) -> tuple[jax.Array, Metrics]:
    """The total loss (critic + actor) of a batch, and the metrics."""
    latents = encode_batch(params, target_params, networks, config, batch)
    return total_loss(params, target_params, networks, config, latents, batch, draws)


def loss_and_grads(
    networks: Networks,
    config: AgentConfig,
    params: Params,
    target_params: Params,
    batch: Batch,
    draws: Draws,
) -> tuple[Params, Metrics]:
    """Gradient of the total loss (critic + actor) in the `trainable_params`, and the metrics."""

    def loss(trainable: Params) -> tuple[jax.Array, Metrics]:
        return losses(networks, config, {**params, **trainable}, target_params, batch, draws)

    return jax.grad(loss, has_aux=True)(trainable_params(config, params))


def update_with_draws(
    networks: Networks, config: AgentConfig, state: TrainState, batch: Batch, draws: Draws
) -> tuple[TrainState, Metrics]:
    """`update` with the random numbers given.

    The target network averages the critic as it was before this step, as the reference does.
    """
    grads, metrics = loss_and_grads(
        networks, config, state.params, state.target_params, batch, draws
    )
    trainable = trainable_params(config, state.params)
    updates, opt_state = make_optimizer(config).update(grads, state.opt_state, trainable)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params={**state.params, **optax.apply_updates(trainable, updates)},
        target_params=optax.incremental_update(
            critic_params(config, state.params), state.target_params, config.tau
        ),
        opt_state=opt_state,
    )
    return new_state, {**metrics, 'update/grad_norm': optax.tree.norm(grads)}


def update(
    networks: Networks, config: AgentConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One gradient step on a batch, with the draws of `fold_in(state.key, state.step)`.

    Pure; jit it with `networks` and `config` bound, and the state donated.

    Returns:
        The next state, and scalar metrics of the parameters before the step.
    """
    key = jax.random.fold_in(state.key, state.step)
    draws = sample_draws(key, *batch.actions.shape)
    return update_with_draws(networks, config, state, batch, draws)


def validation_metrics(
    networks: Networks, config: AgentConfig, state: TrainState, batch: Batch
) -> Metrics:
    """The metrics of a batch that the state is not trained on, each `validation/NAME`."""
    key = jax.random.fold_in(state.key, state.step)
    draws = sample_draws(key, *batch.actions.shape)
    _, metrics = losses(networks, config, state.params, state.target_params, batch, draws)
    return {f'validation/{name}': value for name, value in metrics.items()}
