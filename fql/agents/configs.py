"""Every agent's settings, as frozen dataclasses. Imports no JAX: `--help` must answer at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

EncoderName = Literal['impala_debug', 'impala_small', 'impala', 'impala_large']
EncoderMode = Literal['scratch', 'finetune', 'frozen']
EncoderSharing = Literal['shared', 'separate']
AgentName = Literal['fql', 'iql', 'rebrac', 'ifql', 'fbrac', 'fawac', 'bc', 'sac', 'qc_fql', 'qc']
Aggregation = Literal['mean', 'min']
Precision = Literal['float32', 'bfloat16']


@dataclass(frozen=True)
class Spec:
    """Shapes of an agent's observations and actions.

    Attributes:
        observation_shape: of one stacked observation, (h, w, c) or (d,); of several arrays, such
            shapes by name.
        action_dim: size of an action.
    """

    observation_shape: Any
    action_dim: int

    @property
    def has_images(self) -> bool:
        """Whether observations are images, or include images."""
        shapes = self.observation_shape
        several = shapes.values() if isinstance(shapes, Mapping) else (shapes,)
        return any(len(shape) == 3 for shape in several)


def _flag(name: str, metavar: str | None = None) -> object:
    return tyro.conf.arg(name=f'encoder.{name}', metavar=metavar)


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of images; without effect on vector observations."""

    size: Annotated[EncoderName, _flag('size')] = 'impala_small'
    """Size of the encoder; --encoder NAME is short for it."""
    sharing: Annotated[EncoderSharing, _flag('sharing')] = 'shared'
    """One encoder for all networks, or one each as in the reference implementation."""
    cameras: Annotated[EncoderSharing, _flag('cameras')] = 'separate'
    """Where an observation has several images: parameters for each, or the same for all, which must
    be of one shape."""
    mode: Annotated[EncoderMode, _flag('mode')] = 'scratch'
    """Train a fresh encoder, train the saved one further, or keep the saved one unchanged."""
    source: Annotated[str, _flag('from', 'DIR')] = ''
    """Folder of a saved encoder to start from; read only when the run starts."""
    lr_multiplier: Annotated[float, _flag('lr-multiplier')] = 1.0
    """Finetune: the encoder's learning rate is this times lr."""
    unfreeze_step: Annotated[int, _flag('unfreeze-step')] = 0
    """Finetune: the encoder is trained from this update on."""


@dataclass(frozen=True)
class AgentConfig:
    """Settings common to all agents. Defaults are the reference implementation's."""

    name: ClassVar[str]
    """The name that --agent takes."""

    lr: float = 3e-4
    """Adam's learning rate."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Weight of the new parameters in the target networks' moving average (Polyak)."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of every network after the encoder."""
    critic_layer_norm: bool = True
    """LayerNorm in the critic, and in the value function where there is one."""
    actor_layer_norm: bool = False
    """LayerNorm in the policies."""
    precision: Precision = 'float32'
    """Type of the networks' computation; parameters, losses and optimiser are always float32."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True)
class FQLConfig(AgentConfig):
    """Flow Q-Learning (Park, Li, Levine 2025)."""

    name = 'fql'

    alpha: float = 10.0
    """Weight of the distillation loss; the one hyperparameter to tune for each task."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    q_agg: Aggregation = 'mean'
    """How the target critics are combined."""
    normalize_q_loss: bool = False
    """Divide the Q term by the mean absolute Q."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder, as the critic loss always does."""
    num_critics: int = 2
    """Critics in the ensemble."""
    critic_pessimism: float = 0.0
    """With q-agg mean: how many standard deviations of the ensemble to subtract from its mean."""
    candidates: int = 1
    """When acting, the critics choose the best of this many actions of the one-step policy."""
    target_candidates: int = 1
    """The same in the critic's target: the critics choose, the target critics evaluate."""
    horizon: int = 1
    """Steps of the return in the critic's target."""
    distillation: Literal['euler', 'velocity'] = 'euler'
    """Distil the flow's result after its Euler steps, or its velocity on the way to the policy's
    action, which needs one evaluation of the flow (alpha of about 100 on visual tasks)."""


@dataclass(frozen=True)
class IQLConfig(AgentConfig):
    """Implicit Q-Learning (Kostrikov et al. 2022) with a Gaussian actor."""

    name = 'iql'

    expectile: float = 0.9
    """Expectile of the value loss."""
    actor_loss: Literal['awr', 'ddpgbc'] = 'awr'
    """How the policy is extracted: advantage-weighted regression, or DDPG with behaviour cloning.
    """
    alpha: float = 10.0
    """awr: factor of the advantage in the weight (larger is greedier); ddpgbc: weight of behaviour
    cloning."""
    const_std: bool = True
    """Fix the actor's standard deviation at 1; otherwise it is learnt."""


@dataclass(frozen=True)
class ReBRACConfig(AgentConfig):
    """ReBRAC (Tarasov et al. 2023)."""

    name = 'rebrac'

    alpha_actor: float = 0.0
    """Weight of behaviour cloning in the actor's loss."""
    alpha_critic: float = 0.0
    """Weight of behaviour cloning in the critic's target."""
    actor_freq: int = 2
    """Updates between those of the actor and of the targets."""
    actor_noise: float = 0.2
    """Standard deviation of the noise on the target actor's actions."""
    actor_noise_clip: float = 0.5
    """Largest noise on the target actor's actions."""
    tanh_squash: bool = True
    """Squash the actor's actions by tanh; otherwise they are only clipped."""
    as_published: bool = False
    """At a trajectory's last transition, penalise the distance to the next trajectory's first
    action, as the published implementation does; otherwise there is no penalty there."""


@dataclass(frozen=True)
class IFQLConfig(AgentConfig):
    """IQL's critic and value function, and the best of several actions of a flow policy."""

    name = 'ifql'

    expectile: float = 0.9
    """Expectile of the value loss."""
    num_samples: int = 32
    """The critics choose the best of this many actions sampled from the flow."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder, as the critic and value losses do."""


@dataclass(frozen=True)
class FBRACConfig(AgentConfig):
    """Flow behaviour-regularised actor-critic: Q gradients through the whole flow."""

    name = 'fbrac'

    alpha: float = 10.0
    """Weight of the BC-flow loss."""
    flow_steps: int = 10
    """Euler steps of the flow policy, through which the gradient goes."""
    q_agg: Aggregation = 'mean'
    """How the target critics are combined."""
    normalize_q_loss: bool = False
    """Divide the Q term by the mean absolute Q."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder; the Q term never does."""


@dataclass(frozen=True)
class FAWACConfig(AgentConfig):
    """Flow advantage-weighted actor-critic."""

    name = 'fawac'

    beta: float = 10.0
    """Factor of the advantage in the weight of flow matching (larger is greedier)."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    q_agg: Aggregation = 'mean'
    """How the target critics are combined."""
    bc_flow_trains_encoder: bool = True
    """Whether the weighted BC-flow loss trains the shared encoder, as the critic loss does."""


@dataclass(frozen=True)
class BCConfig(AgentConfig):
    """Behaviour cloning by flow matching; rewards are not used."""

    name = 'bc'

    flow_steps: int = 10
    """Euler steps of the flow policy."""


@dataclass(frozen=True)
class SACConfig(AgentConfig):
    """Soft actor-critic; RLPD (Ball et al. 2023) when trained online with half of each batch from
    the data.
    """

    name = 'sac'

    q_agg: Aggregation = 'min'
    """How the target critics are combined."""
    backup_entropy: bool = False
    """Whether the critic's target contains the next action's entropy."""
    target_entropy_multiplier: float = 0.5
    """Target entropy of the temperature: minus this times the size of an action."""


@dataclass(frozen=True)
class QCFQLConfig(AgentConfig):
    """FQL on chunks of actions (Li, Zhou, Levine 2025, Q-chunking): distilled one-step policy."""

    name = 'qc_fql'

    alpha: float = 100.0
    """Weight of the distillation loss."""
    horizon: int = 5
    """Actions in a chunk, and steps of the return."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    q_agg: Aggregation = 'mean'
    """How the critics are combined."""
    num_critics: int = 2
    """Critics in the ensemble."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder, as the critic loss always does."""


@dataclass(frozen=True)
class QCConfig(AgentConfig):
    """Q-chunking with the best of several chunks of a flow policy (Li, Zhou, Levine 2025)."""

    name = 'qc'

    horizon: int = 5
    """Actions in a chunk, or steps of the return."""
    action_chunking: bool = True
    """The policy gives the whole chunk; otherwise only its first action (n-step returns)."""
    num_samples: int = 32
    """The critics choose the best of this many chunks sampled from the flow."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    q_agg: Aggregation = 'mean'
    """How the critics are combined."""
    num_critics: int = 2
    """Critics in the ensemble."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder, as the critic loss always does."""


AGENT_CONFIGS: dict[str, type[AgentConfig]] = {
    config.name: config
    for config in (
        *(FQLConfig, IQLConfig, ReBRACConfig, IFQLConfig, FBRACConfig, FAWACConfig),
        *(BCConfig, SACConfig, QCFQLConfig, QCConfig),
    )
}
"""Configurations, by the name that --agent takes."""
