"""Which encoder each head reads, and which losses train it.

`shared` (default): one encoder. Each agent has a table that says which heads' losses train it. The
target networks have their own averaged encoder, whose latents every head reads wherever a
target is computed: each observation is encoded once.

`separate`: an encoder for each head, as in the reference implementation.

A frozen encoder is a shared one that no loss trains: all observations are encoded with it, and the
target networks have none. As its latents never change, a batch may hold them in place of images:
then observations are (b, d), float16 or float32, and are not encoded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from fql.learner import Params

Latents = dict[str, jax.Array]
"""What each head reads of an observation, (b, d) float, by the head's name."""


def join_vectors(observations: Any) -> jax.Array:
    """Vectors (b, d) as they are; several (b, d_i) concatenated in the order of their names."""
    if isinstance(observations, Mapping):
        return jnp.concatenate([observations[name] for name in sorted(observations)], axis=-1)
    return cast(jax.Array, observations)


@dataclass(frozen=True)
class Encoding:
    """The encoding of observations into the latents that each head reads.

    Attributes:
        module: observations to latents; None where these are vectors, which are the latents then.
        trains: by head, whether its loss trains a shared encoder.
        shared: one encoder for all heads, or one each.
        frozen: no loss trains the encoder.
    """

    module: nn.Module | None
    trains: Mapping[str, bool]
    shared: bool
    frozen: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of `params['encoders']` for image observations."""
        return ('shared',) if self.shared else tuple(self.trains)

    def name(self, head: str) -> str:
        """The key, in `params['encoders']`, of the encoder that a head reads."""
        return 'shared' if self.shared else head

    def encode(self, params: Params, head: str, observations: Any) -> jax.Array:
        """The latents (b, d) that a head reads; no gradient is stopped.

        Args:
            observations: images (b, h, w, c), or vectors (b, d), which are latents already; or
                several of both by name.
        """
        if self.module is None:
            return join_vectors(observations)
        if not isinstance(observations, Mapping) and observations.ndim == 2:
            assert self.frozen
            return observations.astype(jnp.float32)
        variables = {'params': params['encoders'][self.name(head)]}
        return cast(jax.Array, self.module.apply(variables, observations))

    def latents(self, params: Params, observations: Any) -> Latents:
        """What every head reads, with the gradient that the table allows.

        Separate encoders are each trained by their own head.
        """
        heads = list(self.trains)
        if self.module is not None and not self.shared:
            return {head: self.encode(params, head, observations) for head in heads}
        latents = self.encode(params, heads[0], observations)
        fixed = jax.lax.stop_gradient(latents)
        return {head: latents if trains else fixed for head, trains in self.trains.items()}

    def target_latents(
        self, params: Params, target_params: Params, observations: Any, heads: Iterable[str]
    ) -> Latents:
        """The latents that heads read where a target is computed, without gradient.

        They come from the averaged encoder if the target networks have that head's encoder, else
        from the online one.
        """
        encoded: Latents = {}
        for head in heads:
            name = self.name(head)
            if name not in encoded:
                source = target_params if name in target_params['encoders'] else params
                encoded[name] = jax.lax.stop_gradient(self.encode(source, head, observations))
        return {head: encoded[self.name(head)] for head in heads}
