"""Every setting of a pretraining, as frozen dataclasses, and the file that describes one."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from data_pipeline.observations import map_named
from fql.agents.configs import EncoderName, EncoderSharing
from fql.augmentation_config import AugmentationConfig
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_stored, write_stored
from fql.settings.bounds import check_bounds, raise_unless

FORMAT_VERSION = 2


ObjectiveName = Literal[
    'inverse_dynamics', 'temporal_contrast', 'self_prediction', 'flow_bc', 'reconstruction'
]


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining. With (seed, step) it determines every batch and every update."""

    dataset: str
    """Name of the prepared dataset, of images, or of several arrays with images among them."""
    objective: ObjectiveName = 'inverse_dynamics'
    """What the encoder is trained for: the action on the way to a later observation, separating
    observations that follow from those that do not, predicting later latents, the flow policy
    of behaviour cloning, or the images themselves."""
    encoder: EncoderName = 'impala_small'
    """Size of the encoder."""
    cameras: Annotated[EncoderSharing, tyro.conf.arg(name='encoder.cameras')] = 'separate'
    """Where an observation has several images: parameters for each, or the same for all, which must
    be of one shape."""
    frame_stack: int = 3
    """Frames in an image observation (1: no stacking), as in the runs that will use the encoder."""
    horizon: int = 10
    """Largest number of steps between the two observations of a window; each is as likely as any
    other that the trajectory has room for."""
    data_dir: str = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    seed: int = 0
    """Seed of parameters, batches and draws."""
    steps: int = 20_000
    """Number of updates."""
    batch_size: int = 256
    """Windows in a batch."""
    lr: float = 3e-4
    """Adam's learning rate."""
    tau: float = 0.01
    """Weight of the new parameters in the moving average, the target of temporal_contrast and
    self_prediction."""
    hidden_dims: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of the objective's heads."""
    mask_ratio: float = 0.0
    """Fraction of the 8x8 patches hidden from the encoder in reconstruction (0: it sees all)."""
    shift_probability: float = 0.5
    """Probability that a batch's images are randomly shifted (up to 3 pixels); the two
    observations of a window are shifted independently."""
    updates_per_call: int = 1
    """Updates that one call of the compiled step makes; more save time where updates are short. On
    CPUs it is always one."""
    log_interval: int = 1_000
    """Updates between rows of train.csv (0: none)."""
    save_interval: int = 5_000
    """Updates between checkpoints; one more at the end."""
    keep_latest: int = 2
    """Checkpoints kept."""
    keep_interval: int = 0
    """Checkpoints at multiples of this many updates that are never deleted (0: none)."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    @property
    def eval_interval(self) -> int:
        """There are no evaluations."""
        return 0


@dataclass(frozen=True)
class PretrainSpec:
    """What determines the networks of a pretraining and its state before the first update.

    Attributes:
        config: the run's settings.
        image_shape: (h, w, c) of one frame; of several arrays such shapes by name, and (d,) of
            vectors.
        action_dim: size of an action.
    """

    config: PretrainConfig
    image_shape: Any
    action_dim: int

    @property
    def stack_shape(self) -> Any:
        """The same of a stack."""
        stack = self.config.frame_stack
        return map_named(lambda shape: (*shape[:-1], shape[-1] * stack), self.image_shape)


def validate_pretrain_config(config: PretrainConfig) -> None:
    """Raise FQLError, naming the field, when a value makes no sense."""
    check_bounds(config)
    raise_unless(
        {
            'steps must be at least 1': config.steps >= 1,
            'mask-ratio needs --objective reconstruction': (
                config.mask_ratio == 0 or config.objective == 'reconstruction'
            ),
            'save-interval must be at least 1: the encoder is taken from the last checkpoint': (
                config.save_interval >= 1
            ),
        }
    )


@dataclass(frozen=True)
class _StoredSpec:
    """What `pretraining.json` holds beside its format version; see `PretrainSpec`."""

    run_id: str
    config: PretrainConfig
    image_shape: tuple[int, int, int] | Mapping[str, tuple[int, ...]]
    action_dim: int
    versions: Mapping[str, str]


def write_pretrain_spec(run: RunFolder, spec: PretrainSpec) -> None:
    """Write `pretraining.json` whole or not at all."""
    values = {
        'config': dataclasses.asdict(spec.config),
        'image_shape': map_named(list, spec.image_shape),
        'action_dim': spec.action_dim,
    }
    write_stored(run.pretrain_spec, FORMAT_VERSION, values)


def read_pretrain_spec(run: RunFolder) -> PretrainSpec:
    """Read `pretraining.json`.

    Raises:
        FQLError: when the folder is no pretraining, or its file cannot be understood.
    """
    path = run.pretrain_spec
    stored = read_stored(path, FORMAT_VERSION, _StoredSpec, 'is no folder of a pretraining')
    return PretrainSpec(stored.config, stored.image_shape, stored.action_dim)
