"""Every setting of a training run, as frozen dataclasses, and their JSON form."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fql.errors import FQLError

OWN_TASK = 'own'
"""The task whose rewards and masks are part of the dataset; it has no environment."""

EncoderName = Literal['impala_debug', 'impala_small', 'impala', 'impala_large']
EncoderMode = Literal['scratch', 'finetune', 'frozen']


@dataclass(frozen=True)
class AgentConfig:
    """The algorithm. Defaults are the reference implementation's, but for the shared encoder."""

    lr: float = 3e-4
    """Adam's learning rate."""
    discount: float = 0.99
    """Discount factor."""
    tau: float = 0.005
    """Rate at which the target network follows the critic."""
    alpha: float = 10.0
    """Weight of the distillation loss; the one hyperparameter to tune for each task."""
    flow_steps: int = 10
    """Euler steps of the flow policy."""
    q_agg: Literal['mean', 'min'] = 'mean'
    """How the target critics are combined."""
    normalize_q_loss: bool = False
    """Divide the Q term by the mean absolute Q."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Widths of the hidden layers of critic, flow and one-step policy."""
    critic_layer_norm: bool = True
    """LayerNorm in the critic."""
    actor_layer_norm: bool = False
    """LayerNorm in the flow and the one-step policy."""
    encoder: EncoderName = 'impala_small'
    """Size of the encoder; without effect on vector observations."""
    encoder_sharing: Literal['shared', 'separate'] = 'shared'
    """One encoder for the critic and both policies, or one each as in the reference."""
    bc_flow_trains_encoder: bool = True
    """Whether the BC-flow loss trains the shared encoder, as the critic loss always does."""
    precision: Literal['float32', 'bfloat16'] = 'float32'
    """Of the networks' computation; parameters, losses and optimiser are float32 always."""
    encoder_from: Annotated[str, tyro.conf.arg(name='encoder.from', metavar='DIR')] = ''
    """Folder of a saved encoder to start from; read when the run starts, never afterwards."""
    encoder_mode: Annotated[EncoderMode, tyro.conf.arg(name='encoder.mode')] = 'scratch'
    """Train a fresh encoder, train the saved one on, or leave that one as it is."""
    encoder_lr_multiplier: Annotated[float, tyro.conf.arg(name='encoder.lr-multiplier')] = 1.0
    """Finetune: the encoder's learning rate is this times lr."""
    encoder_unfreeze_step: Annotated[int, tyro.conf.arg(name='encoder.unfreeze-step')] = 0
    """Finetune: the encoder is trained from this update on."""


@dataclass(frozen=True)
class AugmentationConfig:
    """Changes of the images that training sees, drawn for each sample; all off by default."""

    brightness: float = 0.0
    """Up to this much of the full range is added or taken away (0: off)."""
    contrast: float = 0.0
    """Contrast is scaled by 1 minus to 1 plus this (0: off)."""
    saturation: float = 0.0
    """Saturation is scaled by 1 minus to 1 plus this (0: off)."""
    hue: float = 0.0
    """Hue is turned by up to this part of the colour circle, at most 0.5 (0: off)."""
    grayscale_probability: float = 0.0
    """Probability that a sample's images lose their colours."""
    blur_probability: float = 0.0
    """Probability that a sample's images are blurred, by a Gaussian of up to 1 pixel."""
    cutout_probability: float = 0.0
    """Probability that a rectangle a quarter as high and as wide as the images is blackened."""

    @property
    def is_on(self) -> bool:
        """Whether anything is changed at all."""
        return self != AugmentationConfig()


@dataclass(frozen=True)
class TrainConfig:
    """A training run. With (seed, step) it determines every batch and every update."""

    task: str
    """The task, by OGBench's name: visual-cube-single-play-singletask-task1-v0. Or `own`: that of
    the rewards in --dataset itself, without evaluations."""
    dataset: str = ''
    """Name of the prepared dataset; by default the one the task's name implies."""
    data_dir: str = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    seed: int = 0
    """Seed of parameters, batches and draws."""
    steps: int = 500_000
    """Number of updates."""
    batch_size: int = 256
    """Transitions in a batch."""
    frame_stack: int = 3
    """Frames, or states, in an observation (1: no stacking)."""
    shift_probability: float = 0.5
    """Probability that a batch's images are randomly shifted (up to 3 pixels)."""
    latent_cache: Literal['off', 'float32', 'float16'] = 'float32'
    """Of a frozen encoder: compute the latents of all rows once and train on these, in files of
    this type beside the data; only where images are not changed at random."""
    updates_per_call: int = 1
    """Updates that one call of the compiled step makes; more save time where updates are short. On
    CPUs it is always one."""
    log_interval: int = 1_000
    """Updates between rows of train.csv (0: none)."""
    eval_interval: int = 100_000
    """Updates between evaluations; one more at the end (0: none at all)."""
    eval_episodes: int = 50
    """Episodes of an evaluation."""
    eval_workers: int = 0
    """Processes that run environments (0: one for each processor, at most 16)."""
    eval_seed: int = 10_000
    """Episode i of every evaluation is reset with this seed plus i."""
    max_episode_steps: int = 0
    """Longest evaluation episode (0: the environment's own limit)."""
    success_timing: Literal['pre', 'post'] = 'post'
    """When success is judged: after a step as in the paper, or before it as in the data."""
    save_interval: int = 50_000
    """Updates between checkpoints; one more at the end (0: none at all)."""
    keep_latest: int = 3
    """Checkpoints kept besides the best by success."""
    keep_interval: int = 0
    """Checkpoints at multiples of this many updates are kept for ever (0: none)."""
    shard_params: bool = False
    """Spread large parameters over the devices (FSDP) instead of keeping a copy on each."""
    wandb_project: str = ''
    """Also send the metrics to this Weights & Biases project (needs the extra `wandb`)."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass(frozen=True)
class Processes:
    """Several processes that train together."""

    coordinator: str = ''
    """HOST:PORT of the first of several processes that train together, each started with this
    same command and its own --process-id; `auto` on clusters that JAX knows (Slurm, TPU pods)."""
    num_processes: int = 1
    """How many processes train together."""
    process_id: int = 0
    """Which of them this is, from 0."""


RESUMABLE_FIELDS = frozenset(
    {
        'data_dir',
        'steps',
        'updates_per_call',
        'eval_workers',
        'keep_latest',
        'keep_interval',
        'shard_params',
        'wandb_project',
    }
)
"""Fields that may differ when a run is resumed: they change no update made so far."""


def validate_config(config: TrainConfig) -> None:
    """Raises FQLError, naming the field, when a value makes no sense."""
    agent, augmentation = config.agent, config.augmentation
    checks = {
        'seed must lie in [0, 2^31)': 0 <= config.seed < 2**31,
        'steps must be at least 1': config.steps >= 1,
        'batch-size must be at least 1': config.batch_size >= 1,
        'updates-per-call must be at least 1': config.updates_per_call >= 1,
        'frame-stack must be at least 1': config.frame_stack >= 1,
        'shift-probability must lie in [0, 1]': 0 <= config.shift_probability <= 1,
        'intervals, episodes and workers must not be negative': min(
            config.log_interval,
            config.eval_interval,
            config.eval_episodes,
            config.eval_workers,
            config.max_episode_steps,
            config.save_interval,
            config.keep_interval,
        )
        >= 0,
        'keep-latest must be at least 1': config.keep_latest >= 1,
        'eval-episodes must be at least 1 (eval-interval 0 turns evaluation off)': (
            config.eval_episodes >= 1 or config.eval_interval == 0
        ),
        'eval-seed must lie in [0, 2^31)': 0 <= config.eval_seed < 2**31,
        'task own needs --dataset': config.task != OWN_TASK or config.dataset != '',
        'task own has no environment: set eval-interval to 0': (
            config.task != OWN_TASK or config.eval_interval == 0
        ),
        'lr must be positive': agent.lr > 0,
        'discount must lie in [0, 1]': 0 <= agent.discount <= 1,
        'tau must lie in [0, 1]': 0 <= agent.tau <= 1,
        'alpha must not be negative': agent.alpha >= 0,
        'flow-steps must be at least 1': agent.flow_steps >= 1,
        'encoder.from needs --encoder.mode finetune or frozen': (
            not agent.encoder_from or agent.encoder_mode != 'scratch'
        ),
        f'encoder.mode {agent.encoder_mode} needs --encoder.from': (
            bool(agent.encoder_from) or agent.encoder_mode == 'scratch'
        ),
        'encoder.mode frozen needs --encoder-sharing shared: one encoder, kept as it is': (
            agent.encoder_mode != 'frozen' or agent.encoder_sharing == 'shared'
        ),
        'no-bc-flow-trains-encoder needs a shared encoder that is trained': (
            agent.bc_flow_trains_encoder
            or (agent.encoder_sharing == 'shared' and agent.encoder_mode != 'frozen')
        ),
        'encoder.lr-multiplier must be positive': agent.encoder_lr_multiplier > 0,
        'encoder.unfreeze-step must not be negative': agent.encoder_unfreeze_step >= 0,
        'encoder.lr-multiplier and encoder.unfreeze-step need --encoder.mode finetune': (
            agent.encoder_mode == 'finetune'
            or (agent.encoder_lr_multiplier == 1 and agent.encoder_unfreeze_step == 0)
        ),
        'hidden-dims must be one or more positive widths': (
            len(agent.hidden_dims) > 0 and min(agent.hidden_dims) >= 1
        ),
        **augmentation_checks(augmentation),
    }
    raise_unless(checks)


def augmentation_checks(config: AugmentationConfig) -> dict[str, bool]:
    """What must hold, each with the message for when it does not."""
    return {
        'hue must lie in [0, 0.5]': 0 <= config.hue <= 0.5,
        **{
            f'{name.replace("_", "-")} must lie in [0, 1]': 0 <= value <= 1
            for name, value in dataclasses.asdict(config).items()
        },
    }


def raise_unless(checks: dict[str, bool]) -> None:
    """Raises FQLError with the first message whose check does not hold."""
    for message, holds in checks.items():
        if not holds:
            raise FQLError(message)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain JSON values; `agent` and `augmentation` nested."""
    values = dataclasses.asdict(config)
    values['agent']['hidden_dims'] = list(config.agent.hidden_dims)
    return values


def config_from_dict(values: dict[str, Any], origin: Path) -> TrainConfig:
    """The inverse of `config_to_dict`.

    Raises:
        FQLError: when fields are missing or unknown, with their names and `origin`.
    """
    check_fields(TrainConfig, values, origin)
    check_fields(AgentConfig, values['agent'], origin)
    check_fields(AugmentationConfig, values['augmentation'], origin)
    agent_values = {**values['agent'], 'hidden_dims': tuple(values['agent']['hidden_dims'])}
    nested = {
        'agent': AgentConfig(**agent_values),
        'augmentation': AugmentationConfig(**values['augmentation']),
    }
    return TrainConfig(**{**values, **nested})


def check_fields(cls: type, values: dict[str, Any], origin: Path) -> None:
    """Raises FQLError, naming them and `origin`, if `values` lack or add fields to a dataclass."""
    expected = {f.name for f in dataclasses.fields(cls)}
    if missing := sorted(expected - values.keys()):
        raise FQLError(f'{origin}: no field {", ".join(missing)} (written by another version?)')
    if unknown := sorted(values.keys() - expected):
        raise FQLError(f'{origin}: unknown field {", ".join(unknown)} (another version?)')


def differing_fields(stored: Any, asked: Any) -> list[str]:
    """Lines 'field: stored X, asked Y' for every field that must not differ on resume.

    Args:
        stored, asked: configurations of one class.
    """
    before, after = _flat(stored), _flat(asked)
    return [
        f'{name}: stored {before[name]!r}, asked {after[name]!r}'
        for name in before
        if name not in RESUMABLE_FIELDS and before[name] != after[name]
    ]


def _flat(config: Any) -> dict[str, Any]:
    """The fields of a configuration and of those nested in it, by name."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
