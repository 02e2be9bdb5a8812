"""The arguments of every command. Nothing heavy is imported here: `--help` must answer at once."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fql.config import AugmentationConfig, EncoderName, Processes, TrainConfig
from fql.training.pretrain_config import PretrainConfig

DataDir = Annotated[str, tyro.conf.arg(metavar='DIR')]


@dataclass(frozen=True)
class Prepare:
    """Turn a dataset into a frame store.

    fql prepare visual-cube-single-play-v0
    fql prepare visual-cube-single-play-v0 --source visual-cube-single-play-v0.npz
    fql prepare my-robot --tfds ~/tensorflow_datasets/my_robot/1.0.0
        --observation-key observation/image

    Without --source or --tfds, OGBench's file of that name is downloaded to DIR/downloads; a
    download that was interrupted is continued.
    """

    dataset: tyro.conf.Positional[str]
    """Name to give the dataset; OGBench's name, for OGBench's data."""
    source: Path | None = None
    """An .npz file in OGBench's format; the -val.npz beside it becomes the validation split. With
    rewards and masks (0: no value beyond this transition) in it, both (n,), there is a task own."""
    tfds: str | None = None
    """An RLDS dataset: a folder that TFDS has written, or name[/config] of a dataset that TFDS
    knows. Its actions have to be within [-1, 1]."""
    observation_key: str = 'observation'
    """Where an RLDS step holds images (uint8) or vectors, such as observation/image."""
    action_key: str = 'action'
    """Where an RLDS step holds the action."""
    reward_key: str = ''
    """Where an RLDS step holds its reward, for fql train --task own."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    overwrite: bool = False
    """Replace a store of this name that was made from another source."""


@dataclass(frozen=True)
class ExportTfds:
    """Write a frame store as an RLDS dataset that TFDS reads without this program.

    fql export-tfds visual-cube-single-play-v0 --out ~/tensorflow_datasets

    then, in Python: tfds.data_source('ogbench/visual-cube-single-play-v0'). Rewards are 0 and
    discounts 1, as the data are free of goals, but where the dataset has rewards of its own.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the prepared dataset."""
    out: Path
    """TFDS's data folder; the dataset goes to OUT/ogbench/DATASET/1.0.0."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class Collect:
    """Collect a dataset with OGBench's scripted oracles, as an .npz file of OGBench's format.

    fql collect visual-cube-single-v0 --episodes 100 --val-episodes 10

    fql collect puzzle-3x3-v0 --dataset-type noisy

    fql collect visual-pointmaze-medium-v0 --dataset-type stitch --frame-size 32

    Environments are OGBench's cube-single, cube-double, cube-triple, cube-quadruple, scene,
    puzzle-3x3, puzzle-4x4, puzzle-4x5, puzzle-4x6, and pointmaze-medium, pointmaze-large,
    pointmaze-giant, pointmaze-teleport. With visual- before the name, observations are images.
    (fql train has no task for point mazes; their data serve fql pretrain and fql export-tfds.)

    What is not given has the number of OGBench's dataset of that name. That is a day's work for
    a million images on two cores without a GPU (about 10 a second; without images 1,000), so begin
    with few episodes. An interrupted collection goes on when the command is repeated, also with
    another number of episodes.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='ENV')]
    """The environment, such as visual-cube-single-v0, or 'module:id' for one that `module`
    registers: the way to another camera. An id of your own has to contain cube, scene, puzzle or
    pointmaze, and to begin with visual- if observations are images."""
    dataset_type: Literal['play', 'noisy', 'navigate', 'stitch', 'explore', 'roam'] | None = None
    """Cube, scene and puzzle: play (follows plans; the default) or noisy (reacts to the state, with
    much noise). Point maze: navigate (from goal to goal; the default), stitch (short ways), explore
    (random directions) or roam (navigate with goals anywhere, as in the quickstart)."""
    episodes: int | None = None
    """Trajectories to collect. OGBench: 1000; cube-triple and puzzle-4x5 3000, cube-quadruple and
    puzzle-4x6 5000; point maze: navigate 1000 (giant 500), stitch 5000, explore 10000."""
    val_episodes: int = 0
    """Trajectories of the validation file, NAME-val.npz; OGBench has a tenth of EPISODES."""
    episode_steps: int | None = None
    """Transitions in a trajectory, which has one row more. OGBench: 1000; point maze: navigate 1000
    (giant 2000), stitch 200, explore 500."""
    noise: float | None = None
    """Noise of the oracle. OGBench: 0.1; point maze: 0.5, explore 1.0."""
    p_random_action: float | None = None
    """Probability of a uniformly random action in place of the oracle's. OGBench: noisy 0.1, of
    the puzzles 0.2; else 0."""
    frame_size: int | None = None
    """Width and height of images; default 64."""
    env_kwargs: str = '{}'
    """More arguments of the environment, as JSON: '{"pixel_transparent_arm": false}' shows the
    arm."""
    seed: int = 0
    """Trajectory i depends on the seed, on i and on the settings above, but the numbers of
    episodes; not on the number of workers."""
    workers: int = 0
    """Processes that collect (0: one for each processor)."""
    out: Path | None = None
    """The file to write; default: collected/NAME.npz in the data folder."""
    overwrite: bool = False
    """Replace files that exist; otherwise they are kept, and only the other one is collected."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class Train:
    """Train an agent; evaluate, log and checkpoint on the way.

    fql train --task visual-cube-single-play-singletask-task1-v0 --run-dir runs/cube
    fql train --resume runs/cube

    Defaults are the paper's for the task: name one to see them, fql train --task ... --help.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name='')]
    run_dir: Path | None = None
    """Folder that the run writes into; it must not hold a run yet. Default: runs/TASK-TIME."""
    resume: Path | None = None
    """Run folder to continue, with its stored settings; of these only --steps, --data-dir,
    --updates-per-call, --eval-workers, --keep-latest, --keep-interval, --shard-params and
    --wandb-project may be given anew. `auto`: continue --run-dir if it holds a run, else start it
    (for job schedulers)."""
    processes: Processes = field(default_factory=Processes)

    @property
    def data_dir(self) -> str:
        """The data folder; part of the stored settings, so that a resumed run finds it."""
        return self.config.data_dir


@dataclass(frozen=True)
class Pretrain:
    """Train an encoder alone, without rewards; it ends as a folder, RUN/encoder.

    fql pretrain --dataset visual-cube-single-play-v0 --run-dir runs/cube-encoder
    fql pretrain --resume runs/cube-encoder

    then: fql train --task ... --encoder.from runs/cube-encoder/encoder --encoder.mode frozen
    """

    config: Annotated[PretrainConfig, tyro.conf.arg(name='')]
    run_dir: Path | None = None
    """Folder that the run writes into; it must not hold a run yet. Default:
    runs/pretrain-DATASET-OBJECTIVE-TIME."""
    resume: Path | None = None
    """Run folder to continue, with its stored settings; of these only --steps, --data-dir,
    --updates-per-call, --keep-latest and --keep-interval may be given anew. `auto`: continue
    --run-dir if it holds a run, else start it (for job schedulers)."""
    processes: Processes = field(default_factory=Processes)

    @property
    def data_dir(self) -> str:
        """The data folder; part of the stored settings, so that a resumed run finds it."""
        return self.config.data_dir


@dataclass(frozen=True)
class Probe:
    """Print how well robot and objects can be read off an encoder's latents by a linear map.

    fql probe runs/cube-encoder/encoder

    For every column of qpos, R^2 on the validation split of a ridge regression fitted to the
    training split: from the saved encoder's latents, from those of a random one of the same size,
    and from the images' pixels, averaged to at most 16x16.
    """

    encoder: tyro.conf.Positional[Path]
    """Folder of a saved encoder."""
    dataset: str | None = None
    """Name of a prepared dataset; default: the one that the encoder was trained on."""
    target: tuple[int, ...] = ()
    """Columns of qpos; default: all."""
    rows: int = 20_000
    """Rows of each split that are used at most, evenly spaced."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class ExportEncoder:
    """Write the encoder of a run as a folder of its own, for fql train --encoder.from.

    fql export-encoder runs/cube --out encoders/cube

    Of an agent with --encoder-sharing separate it is the critic's. Of a pretraining, the encoder
    of an earlier checkpoint can be had.
    """

    run: tyro.conf.Positional[Path]
    """Run folder of fql train or fql pretrain."""
    out: Path
    """The folder to write; must not exist."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    data_dir: DataDir = ''
    """Data folder, which also keeps compiled programs; default as for fql train."""


@dataclass(frozen=True)
class Evaluate:
    """Roll out a trained policy and print its success rate.

    fql evaluate runs/cube --episodes 50 --video cube.gif
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    episodes: int = 50
    """Number of episodes; episode i is reset with seed + i."""
    seed: int | None = None
    """Default: the run's eval-seed."""
    policy: Literal['one_step', 'bc_flow', 'random'] = 'one_step'
    """FQL's policy, the behaviour-cloned flow policy of the same run, or uniform actions."""
    workers: int = 0
    """Processes that run environments (0: one for each processor, at most 16)."""
    max_episode_steps: int | None = None
    """Longest episode (0: the environment's own limit); default: the run's."""
    success_timing: Literal['pre', 'post'] | None = None
    """When success is judged; default: the run's."""
    video: Path | None = None
    """Write the first episodes as a GIF; an existing file is not overwritten."""
    watch: bool = False
    """Evaluate every new checkpoint of a run that is being trained (with --eval-interval 0) and
    write the results into its folder; ends with the run's last step."""
    data_dir: DataDir = ''
    """Data folder, which also keeps compiled programs; default as for fql train."""


@dataclass(frozen=True)
class InspectBatch:
    """Write the batch that one update of a run sees, shifted and augmented.

    fql inspect batch --task visual-cube-single-play-singletask-task1-v0 --step 7 --seed 0
        --out batch.npz --png batch.png
    """

    task: str
    """The task."""
    step: int = 0
    """Which update; the first one is update 0."""
    seed: int = 0
    """The run's seed."""
    out: Path | None = None
    """Where to write the arrays, .npz; an existing file is not overwritten."""
    png: Path | None = None
    """Where to draw the first transitions; an existing file is not overwritten."""
    dataset: str | None = None
    """As for fql train."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    batch_size: int | None = None
    """As for fql train."""
    frame_stack: int | None = None
    """As for fql train."""
    shift_probability: float | None = None
    """As for fql train."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass(frozen=True)
class Compare:
    """Draw the success of several runs over their updates, and print a table.

    fql compare runs/scratch-0 runs/scratch-1 runs/frozen-0 runs/frozen-1 --out curves.png

    Folders whose names differ only in a number at the end are one group: its mean is drawn, and
    thin, its runs.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of fql train."""
    out: Path = Path('comparison.png')
    """The picture to write; must not exist."""


@dataclass(frozen=True)
class InspectCheckpoint:
    """Print a checkpoint's step, parameter count and digest as JSON.

    The digest is SHA-256 over path, dtype, shape and bytes of every leaf of the training state:
    two runs whose digests agree are in the same state, bit for bit.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    step: int | None = None
    """Which checkpoint; default: the newest that is sound."""
    data_dir: DataDir = ''
    """Data folder, which also keeps compiled programs; default as for fql train."""


@dataclass(frozen=True)
class InspectData:
    """Print what a frame store holds: source, trajectories, actions, and rewards of its tasks.

    fql inspect data visual-cube-single-play-v0 --verify --png cube.png

    Rewards are those of all tasks of a known dataset, and of every other task of which a run has
    used it.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the prepared dataset."""
    verify: bool = False
    """Read every array and compare it with the checksum of when it was prepared."""
    png: Path | None = None
    """Where to draw some frames; NAME-histograms.png beside it gets lengths and actions. Existing
    files are not overwritten."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class Inspect:
    """Look at a dataset, a batch or a checkpoint."""

    what: (
        Annotated[InspectData, tyro.conf.subcommand('data')]
        | Annotated[InspectBatch, tyro.conf.subcommand('batch')]
        | Annotated[InspectCheckpoint, tyro.conf.subcommand('checkpoint')]
    )


@dataclass(frozen=True)
class Quickstart:
    """Collect a small pixel task, train FQL on it and compare it with cloning and chance.

    Takes some minutes on two processor cores. A second call reuses the collected data.
    """

    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    run_dir: Path | None = None
    """Folder that the run writes into. Default: runs/quickstart, or the next free number."""
    seed: int = 0
    """Seed of the training run."""


@dataclass(frozen=True)
class BenchmarkFaults:
    """Kill a run again and again and see that it ends in the same state as one left alone.

    Small networks on a prepared dataset; evaluation is off. Then the time that saving takes from
    training is measured with the paper's networks.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    kills: int = 30
    """How often the run is killed (SIGKILL), at random moments."""
    updates: int = 6_000
    """Updates of the run."""
    seed: int = 0
    """Of the moments."""
    folder: Path = Path('runs/benchmark-faults')
    """Where the runs are made; must not exist."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class BenchmarkData:
    """Time the loader against the reference implementation's way of sampling, in one process.

    The loader works on all cores; what is compared is the time until the host has a batch. Also:
    memory and start-up time with a sparse store of a million frames (a file of 12.3 GB that takes
    hardly any disk); the dataset's own frames prepared and exported anew; how long training waits
    for data. What is written is removed from the data folder again. Takes some minutes.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    rounds: int = 20
    """How often the ways take turns; medians are reported."""
    batches: int = 10_000
    """Batches drawn from the sparse store while memory is watched."""
    updates: int = 20
    """Updates (impala_small, batch 256) timed for the share of waiting."""
    json: Path | None = None
    """Write the numbers here too; an existing file is not overwritten."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class BenchmarkLatents:
    """Time the caching of a frozen encoder's latents against the encoder alone, in turns.

    The encoder is a fresh one. Alone, it encodes one batch again and again; to cache, frames are
    read, put on the devices and encoded, and latents are checked and written, to the folder for
    temporary files. Both have compiled before.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared; its batch size, frame stack and encoder are taken."""
    rows: int = 20_000
    """Rows of a turn: the dataset's first trajectories that have no more."""
    rounds: int = 5
    """How often the two take turns; medians are reported."""
    json: Path | None = None
    """Also write all numbers to this file, which must not exist."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class BenchmarkUpdate:
    """Time one update in every mode, in turns, and count its work.

    fql benchmark update --rounds 10 --json update.json

    fql benchmark update --against precision=bfloat16

    GFLOP and GB (read and written) are those that XLA counts in the compiled program, on one
    device. The peak is that of a product of two large matrices.
    """

    modes: tuple[Literal['reference', 'separate', 'plain', 'shared', 'frozen', 'latents'], ...] = (
        'reference',
        'separate',
        'plain',
        'shared',
        'frozen',
        'latents',
    )
    """reference: as the reference implementation computes an update (three encoders, XLA's max
    pooling, one update per call). separate, shared: --encoder-sharing. plain: shared, with XLA's
    own convolutions and max pooling. frozen: no gradient into the encoder; latents: the same on
    cached latents. The first one is what others are compared with."""
    against: tuple[str, ...] = ()
    """Compare two configurations instead: A as given here, B with these NAME=VALUE settings of
    fql train changed."""
    rounds: int = 10
    """How often the ways take turns; medians are reported."""
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
    updates_per_call: int = 1
    """As for fql train."""
    json: Path | None = None
    """Also write all numbers to this file, which must not exist."""
    data_dir: DataDir = ''
    """Data folder, which also keeps compiled programs; default as for fql train."""


@dataclass(frozen=True)
class BenchmarkScaling:
    """Time an update against batch size, image size, frame stack, encoder and devices.

    On CPUs there are 8 virtual devices, which share the cores: what to look at is their work, which
    should be an eighth each.
    """

    out: Path = Path('runs/benchmark-scaling')
    """Folder that gets scaling.json and scaling.png, which must not exist."""
    encoder: EncoderName = 'impala_small'
    """Size of the encoder, where that is not varied."""
    rounds: int = 5
    """How often the values take turns; medians are reported."""
    data_dir: DataDir = ''
    """Data folder, which also keeps compiled programs; default as for fql train."""


@dataclass(frozen=True)
class BenchmarkTrain:
    """Time the training loop against bare updates on one batch, and how soon it starts.

    Logs, evaluations and checkpoints are off.
    """

    task: str = 'visual-cube-single-play-singletask-task1-v0'
    """A task whose dataset is prepared."""
    updates: int = 20
    """Updates in a turn."""
    updates_per_call: int = 1
    """As for fql train."""
    rounds: int = 5
    """How often the two take turns; medians are reported."""
    json: Path | None = None
    """Also write all numbers to this file, which must not exist."""
    data_dir: DataDir = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""


@dataclass(frozen=True)
class Benchmark:
    """Measure on this machine."""

    what: (
        Annotated[BenchmarkUpdate, tyro.conf.subcommand('update')]
        | Annotated[BenchmarkScaling, tyro.conf.subcommand('scaling')]
        | Annotated[BenchmarkTrain, tyro.conf.subcommand('train')]
        | Annotated[BenchmarkData, tyro.conf.subcommand('data')]
        | Annotated[BenchmarkLatents, tyro.conf.subcommand('latents')]
        | Annotated[BenchmarkFaults, tyro.conf.subcommand('faults')]
    )


def command_type(
    train_default: TrainConfig | None, pretrain_default: PretrainConfig | None
) -> object:
    """The union of all commands, with `train`'s defaults those of a task or of a stored run, and
    `pretrain`'s those of a stored run.
    """
    if train_default is None:
        train_default = dataclasses.replace(TrainConfig(task=''), task=tyro.MISSING)
    if pretrain_default is None:
        pretrain_default = dataclasses.replace(PretrainConfig(dataset=''), dataset=tyro.MISSING)
    default = Train(config=train_default)
    pretrain = Pretrain(config=pretrain_default)
    return (
        Annotated[Quickstart, tyro.conf.subcommand('quickstart')]
        | Annotated[Collect, tyro.conf.subcommand('collect')]
        | Annotated[Prepare, tyro.conf.subcommand('prepare')]
        | Annotated[ExportTfds, tyro.conf.subcommand('export-tfds')]
        | Annotated[Train, tyro.conf.subcommand('train', default=default)]
        | Annotated[Pretrain, tyro.conf.subcommand('pretrain', default=pretrain)]
        | Annotated[Probe, tyro.conf.subcommand('probe')]
        | Annotated[ExportEncoder, tyro.conf.subcommand('export-encoder')]
        | Annotated[Evaluate, tyro.conf.subcommand('evaluate')]
        | Annotated[Compare, tyro.conf.subcommand('compare')]
        | Annotated[Inspect, tyro.conf.subcommand('inspect')]
        | Annotated[Benchmark, tyro.conf.subcommand('benchmark')]
    )
