"""The arguments of `fql benchmark`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from fql.agents.configs import AgentName, EncoderName
from fql.errors import FQLError
from fql.output import check_new
from fql.settings.dataset_paths import task_dataset_path
from scripts.shared_args import DataDir, JsonOut

Mode = Literal[
    'reference', 'separate', 'plain', 'shared', 'frozen', 'latents', 'states', 'on_device'
]
CUBE_TASK = 'visual-cube-single-play-singletask-task1-v0'
PreparedTask = Annotated[str, tyro.conf.arg(help='A task whose dataset is prepared.')]
Rounds = Annotated[
    int, tyro.conf.arg(help='How often what is compared takes turns; medians are reported.')
]


@dataclass(frozen=True)
class BenchmarkUpdate:
    """Time one update in every mode, in turns, and count its work.

    fql benchmark update --rounds 10 --json update.json
    fql benchmark update --against precision=bfloat16

    GFLOP and GB (read and written) are those that XLA counts in the compiled program, on one
    device. The peak is that of a product of two large matrices.
    """

    modes: tuple[Mode, ...] = get_args(Mode)[:6]
    """reference: as the reference implementation computes an update (three encoders, XLA's max
    pooling, one update per call). separate, shared: --encoder.sharing. plain: shared, with XLA's
    own convolutions and max pooling. frozen: no gradient into the encoder; latents: the same on
    cached latents; states: vectors instead of images; on_device: frames kept on the device, which
    are sampled, gathered and shifted there. The others are compared with the first one."""
    agent: AgentName = 'fql'
    """The agent whose update is timed, with its default settings."""
    against: tuple[str, ...] = ()
    """Compare two configurations in one mode (the one of --modes; default shared): A as given here,
    B with these NAME=VALUE settings of fql train changed."""
    rounds: Rounds = 10
    batch_size: int = 256
    """As for fql train."""
    frame_stack: int = 3
    """As for fql train."""
    image_size: int = 64
    """Height and width of the images."""
    encoder: EncoderName = 'impala_small'
    """As for fql train."""
    hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """As for fql train."""
    precision: Literal['float32', 'bfloat16'] = 'float32'
    """As for fql train."""
    updates_per_call: int = 0
    """As for fql train."""
    json: JsonOut = None

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.json)


@dataclass(frozen=True)
class BenchmarkTrain:
    """Time the training loop against bare updates on one batch, and how soon it starts.

    Logs, evaluations and checkpoints are off.
    """

    task: PreparedTask = CUBE_TASK
    updates: int = 20
    """Updates in a turn."""
    updates_per_call: int = 0
    """As for fql train."""
    rounds: Rounds = 5
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.json)
        if self.updates_per_call and self.updates % self.updates_per_call:
            raise FQLError('updates must be a multiple of updates-per-call')
        task_dataset_path(self.task, '', self.data_dir)


@dataclass(frozen=True)
class BenchmarkData:
    """Time the loader against the reference implementation's way of sampling, in one process.

    The loader works on all cores; what is compared is the time until the host has a batch. Also:
    memory and start-up time with a sparse store of a million frames (a file of 12.3 GB that takes
    hardly any disk); the dataset's own frames prepared and exported again; how long training waits
    for data. What is written is removed from the data folder again. It takes some minutes.
    """

    task: PreparedTask = CUBE_TASK
    rounds: Rounds = 20
    batches: int = 10_000
    """Batches drawn from the sparse store while memory is watched."""
    updates: int = 20
    """Updates (impala_small, batch 256) timed for the share of waiting."""
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.json)
        task_dataset_path(self.task, '', self.data_dir)


@dataclass(frozen=True)
class BenchmarkLatents:
    """Time the caching of a frozen encoder's latents against the encoder alone, in turns.

    The encoder is a fresh one. Alone, it encodes one batch that lies on the devices repeatedly. To
    cache, frames are read, put on the devices and encoded; latents are checked and written to the
    folder for temporary files. Compilation is done before both. Batch size, frame stack and encoder
    are the task's.
    """

    task: PreparedTask = CUBE_TASK
    rows: int = 20_000
    """Rows of a turn: the dataset's first trajectories that have no more."""
    rounds: Rounds = 5
    json: JsonOut = None
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.json)
        task_dataset_path(self.task, '', self.data_dir)


@dataclass(frozen=True)
class BenchmarkOnline:
    """Time the online phase against the offline one, and its environments against a bare one.

    Updates are of impala_small at batch 256, on data that are made for it, with an environment that
    takes no time. The environments that are compared are real ones, without updates. Memory and
    disk are of small networks.
    """

    parts: tuple[Literal['updates', 'environments', 'memory'], ...] = (
        'updates',
        'environments',
        'memory',
    )
    """What to measure."""
    updates: int = 10
    """Updates of a turn, offline and online."""
    env: str = 'visual-cube-single-singletask-task1-v0'
    """The environment whose steps are timed."""
    env_steps: int = 20
    """Steps of each environment in a turn."""
    workers: int = 2
    """Environments that are stepped together."""
    memory_steps: int = 20_000
    """Environment steps, each with an update, over which memory is watched."""
    rounds: Rounds = 5
    json: JsonOut = None

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        check_new(self.json)


@dataclass(frozen=True)
class BenchmarkFaults:
    """Kill a run again and again; check that it ends in the same state as one left alone.

    Small networks on a prepared dataset; evaluation is off. Then the time that saving takes from
    training is measured with the paper's networks.
    """

    task: PreparedTask = CUBE_TASK
    kills: int = 30
    """How often the run is killed (SIGKILL), at random moments."""
    updates: int = 6_000
    """Updates of the run."""
    online: bool = False
    """Make the first 100 updates offline, the others in an online phase."""
    seed: int = 0
    """Seed of the moments."""
    folder: Path = Path('runs/benchmark-faults')
    """Where to make the runs; must not exist."""
    data_dir: DataDir = ''

    def check(self) -> None:
        """Raise FQLError if the arguments make no sense."""
        if self.folder.exists():
            raise FQLError(f'{self.folder} exists; delete it or name another --folder')
        task_dataset_path(self.task, '', self.data_dir)
