"""The interface of an agent: settings and modules, a loss, and policies. It holds no arrays."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from encoders.cameras import blank_observations, observation_encoder
from encoders.impala import ENCODERS
from fql.agents.configs import AgentConfig, Spec
from fql.batch import Batch
from fql.encoding import Encoding, join_vectors
from fql.learner import Metrics, Params
from fql.networks import Head


@dataclass(frozen=True)
class Agent(ABC):
    """An algorithm: what is learnt, by which loss, and how it acts. Static under `jit`.

    `params` is `{'encoders': {name: ...}, head: ...}`, one entry for each of `heads`;
    `target_params` holds the averaged part of it.

    Attributes:
        config: its settings.
        spec: shapes of its observations and actions.
        plain_encoder: the encoder uses XLA's own operations, which run on every platform;
            `encoders.cpu_convolution` is for CPUs.
    """

    config: AgentConfig
    spec: Spec
    plain_encoder: bool = False

    policies: ClassVar[tuple[str, ...]]
    """Names of its policies; the first one is the default."""
    averaged_heads: ClassVar[tuple[str, ...]] = ('critic',)
    """Heads that have a target network, which averages them and the encoders they read."""
    averages_after_step: ClassVar[bool] = False
    """The reference implementations average the parameters as they were before the step."""

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Head]:
        """The networks after the encoder, in the order in which they get their random keys."""

    @property
    @abstractmethod
    def trains_encoder(self) -> Mapping[str, bool]:
        """Whether the loss of each head trains a shared encoder."""

    @abstractmethod
    def sample_draws(self, key: jax.Array, batch: Batch) -> Any:
        """The random numbers of one update, from its key."""

    @abstractmethod
    def loss(
        self, params: Params, target_params: Params, batch: Batch, draws: Any, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The total loss of a batch, () float32, and metrics; pure.

        Args:
            draws: of `sample_draws`.
            step: () int32, updates made so far.
        """

    @abstractmethod
    def act(self, params: Params, observations: Any, noise: jax.Array, policy: str) -> jax.Array:
        """Actions (b, action_horizon, a) in [-1, 1] for observations (b, ...).

        Args:
            noise: (b, *noise_shape) standard normal; a policy without randomness ignores it.
            policy: one of `policies`.
        """

    @property
    def exploring_policy(self) -> str:
        """The policy that acts in the online phase, one of `policies`."""
        return self.policies[0]

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise for acting on one observation."""
        return (self.spec.action_dim,)

    def sample_actions(
        self, params: Params, observations: Any, keys: jax.Array, policy: str
    ) -> jax.Array:
        """`act` with the noise of each observation from its own key, (b,) typed PRNG keys."""
        noise = jax.vmap(lambda key: jax.random.normal(key, self.noise_shape))(keys)
        return self.act(params, observations, noise, policy)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of the batch that the loss reads beyond the common ones."""
        return frozenset()

    @property
    def horizon(self) -> int:
        """Steps from an observation of the batch to the next one."""
        return 1

    @property
    def action_horizon(self) -> int:
        """Actions that the policy gives for an observation, executed one after the other."""
        return 1

    @property
    def image_encoder(self) -> nn.Module:
        """Images to latents."""
        return ENCODERS[self.config.encoder.size].clone(
            dtype=jnp.dtype(self.config.precision), plain=self.plain_encoder
        )

    @property
    def encoder(self) -> nn.Module | None:
        """Observations to latents; None where they are vectors, which are the latents then."""
        if not self.spec.has_images:
            return None
        return observation_encoder(
            self.image_encoder,
            self.spec.observation_shape,
            self.config.encoder.cameras,
            jnp.dtype(self.config.precision),
        )

    @property
    def encoding(self) -> Encoding:
        """Which encoder each head reads, and which losses train it."""
        return Encoding(
            module=self.encoder,
            trains=self.trains_encoder,
            shared=self.config.encoder.sharing == 'shared',
            frozen=self.config.encoder.mode == 'frozen',
        )

    @property
    def frozen(self) -> frozenset[str]:
        """Top-level names in `params` that no update changes."""
        return frozenset({'encoders'} if self.encoding.frozen else ())

    def apply(self, params: Params, head: str, *inputs: jax.Array) -> Any:
        """The output of a head for its inputs, the latents first."""
        return self.heads[head].module.apply({'params': params[head]}, *inputs)

    def qs(self, params: Params, latents: jax.Array, actions: jax.Array) -> jax.Array:
        """Q_k(o, a), (critics, b)."""
        return cast(jax.Array, self.apply(params, 'critic', latents, actions))

    def init_params(self, key: jax.Array) -> Params:
        """Fresh parameters, all float32; `encoders` is empty where observations are vectors."""
        heads = self.heads
        encoder_key, *head_keys = jax.random.split(key, 1 + len(heads))
        observations = blank_observations(self.spec.observation_shape)
        encoders: Params = {}
        if self.encoder is None:
            latents = join_vectors(observations)
        else:
            for i, name in enumerate(self.encoding.names):
                latents, variables = self.encoder.init_with_output(
                    jax.random.fold_in(encoder_key, i), observations
                )
                encoders[name] = variables['params']
        return {
            'encoders': encoders,
            **{
                name: head.module.init(key, latents, *(jnp.zeros((1, n)) for n in head.inputs))[
                    'params'
                ]
                for (name, head), key in zip(heads.items(), head_keys, strict=True)
            },
        }

    def averaged(self, params: Params) -> Params:
        """The part of the parameters that the target networks average."""
        names = {self.encoding.name(head) for head in self.averaged_heads}
        kept = () if self.encoding.frozen else params['encoders']
        return {
            'encoders': {name: params['encoders'][name] for name in kept if name in names},
            **{head: params[head] for head in self.averaged_heads},
        }

    def target_rate(self, step: jax.Array) -> jax.Array | float:
        """Weight of the new parameters in the average, in the update made from `step`."""
        del step
        return self.config.tau

    def check(self, batch: Batch) -> None:
        """Assert that a batch has the shapes that the loss reads."""
        size = len(batch.actions)
        steps = () if self.horizon == 1 else (self.horizon,)
        chex.assert_shape(batch.actions, (size, *steps, self.spec.action_dim))
        chex.assert_shape([batch.rewards, batch.masks], (size, *steps))
        chex.assert_trees_all_equal_shapes(batch.observations, batch.next_observations)
        for field in self.needs:
            assert getattr(batch, field) is not None, f'the batch has no {field}'
