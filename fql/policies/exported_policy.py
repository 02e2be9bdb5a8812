"""A policy in its own small folder: without dataset, checkpoints or optimiser.

<folder>/config.json     settings and shapes, as in a run folder
<folder>/policy.json     from which run and update, its evaluations, a digest of the parameters
<folder>/params/         all online parameters, written by Orbax
<folder>/POLICY.stablehlo  the program of a policy, StableHLO, see `export_program`
<folder>/README.md       a model card
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import export

from data_pipeline.files import atomic_folder, file_sha256, write_json
from data_pipeline.observations import describe_observations, flattened, pick_observations
from data_pipeline.schema import read_json
from encoders.cameras import abstract_observations
from encoders.leaves import tree_digest
from encoders.saved import write_params
from fql.agents.base import Agent
from fql.errors import FQLError
from fql.learner import Params
from fql.runs.checkpoint_files import file_checksums
from fql.runs.measures import Measure, read_results
from fql.runs.run_checkpoints import restore_params
from fql.runs.run_folder import EXPORTED, RunFolder, check_new_folder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_object, read_spec, write_spec

PLATFORMS = ('cpu', 'cuda', 'tpu')
PARAMS = 'params'


@dataclass(frozen=True)
class Description:
    """`policy.json`.

    Attributes:
        run: name of the run's folder.
        step: the update.
        policies: what the agent can act with.
        measure: what its evaluations measure: success, score or return.
        results: of the evaluations up to this update, by their updates.
        data: sha256 of the observations, by split.
        files: sha256 of the settings, the programs and the parameters' files, by their paths.
        digest: `tree_digest` of the parameters.
    """

    run: str
    step: int
    policies: tuple[str, ...]
    measure: str
    results: Mapping[str, float]
    data: Mapping[str, str]
    files: Mapping[str, str]
    digest: str


def export_policy(run: Path, step: int | None, out: Path) -> Description:
    """Write the policies of a run's checkpoint as a folder, whole or not at all.

    Args:
        step: which checkpoint; None for the newest that is sound.
        out: must not exist.

    Raises:
        FQLError: no such run or checkpoint, or the folder exists, or lies among checkpoints.
        OSError: it cannot be written.
    """
    if out.exists():
        raise FQLError(f'{out} exists; name another --out')
    check_new_folder(out)
    folder = RunFolder(run)
    spec = read_spec(folder)
    step, params = restore_params(folder, spec, step)
    params = jax.tree.map(np.asarray, params)
    # The paths of this machine are of no use to others.
    encoder = spec.config.agent.encoder
    encoder = dataclasses.replace(encoder, source=Path(encoder.source).name)
    config = dataclasses.replace(
        spec.config,
        data_dir='',
        wandb_project='',
        agent=dataclasses.replace(spec.config.agent, encoder=encoder),
        online=dataclasses.replace(spec.config.online, source=Path(spec.config.online.source).name),
    )
    agent = agent_of(spec)
    measure, results = read_results(folder.eval_csv)
    with atomic_folder(out) as target:
        write_spec(RunFolder(target), dataclasses.replace(spec, config=config))
        write_params(target / PARAMS, params)
        for policy in agent.policies:
            program = export_program(agent, params, policy)
            (target / f'{policy}.stablehlo').write_bytes(program)
        description = Description(
            run=folder.path.absolute().name,
            step=step,
            policies=agent.policies,
            measure=measure.name,
            results={str(at): value for at, value in results.items() if at <= step},
            data=_data_checksums(folder),
            files=file_checksums(target),
            digest=tree_digest(params),
        )
        write_json(target / EXPORTED, dataclasses.asdict(description), indent=2)
        (target / 'README.md').write_text(model_card(spec, description, measure), encoding='utf-8')
    return description


def read_exported(path: Path, spec: RunSpec, step: int | None) -> Params:
    """The parameters in a folder of `export_policy`.

    Args:
        step: the update that they must be of; None for any.

    Raises:
        FQLError: they are damaged, or of another update.
    """
    try:
        description = read_json(path / EXPORTED, Description)
    except (OSError, ValueError) as error:
        raise FQLError(f'{path / EXPORTED}: {error}') from error
    if step not in (None, description.step):
        raise FQLError(f'{path} has update {description.step:,} only, not {step:,}')
    _check_files(path, description.files)
    abstract = jax.eval_shape(agent_of(spec).init_params, jax.random.key(0))
    # Orbax raises whatever the damage leads to.
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(path.absolute() / PARAMS, abstract)
    except Exception as error:
        raise FQLError(
            f'{path}: damaged policy: its parameters cannot be read ({type(error).__name__})'
        ) from error
    if tree_digest(params) != description.digest:
        raise FQLError(f'{path}: damaged policy: the parameters are not those that were written')
    return params


def _check_files(path: Path, digests: Mapping[str, str]) -> None:
    """Raise FQLError if the settings, or a file of the parameters, are not what was written.

    Programs are not read here.
    """
    params = [name for name in digests if name.startswith(f'{PARAMS}/')]
    for name in (RunFolder(path).spec.name, *params):
        try:
            is_sound = digests.get(name) == file_sha256(path / name)
        except OSError as error:
            raise FQLError(f'{path}: damaged policy: {name}: {error.strerror}') from error
        if not is_sound:
            raise FQLError(f'{path}: damaged policy: {name} is not what was written')


def export_program(agent: Agent, params: Params, policy: str) -> bytes:
    """A program with the parameters in it, which runs on any of PLATFORMS without this package.

    It needs JAX, and flatbuffers to be read.

    `jax.export.deserialize(program).call(observations, noise)` takes stacked observations
    (b, h, w, c) uint8 or (b, d) float32, or a dictionary of such arrays, and standard normal noise
    (b, ...) float32, b of any size, and returns actions (b, horizon, a) float32.
    """
    agent = dataclasses.replace(agent, plain_encoder=True)
    (size,) = export.symbolic_shape('b')
    observations = abstract_observations(agent.spec.observation_shape, size)
    noise = jax.ShapeDtypeStruct((size, *agent.noise_shape), jnp.float32)
    act = jax.jit(lambda observations, noise: agent.act(params, observations, noise, policy))
    with _without_source_locations():
        exported = export.export(act, platforms=PLATFORMS)(observations, noise)
    return bytes(exported.serialize())


@contextmanager
def _without_source_locations() -> Iterator[None]:
    """Keep this machine's paths out of the programs that are traced inside."""
    setting = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, setting)
    jax.config.update(setting, 0)
    try:
        yield
    finally:
        jax.config.update(setting, before)


def _data_checksums(folder: RunFolder) -> dict[str, str]:
    """The checksum of each split's observations, where the run has a record of its data.

    Of several observations, each as `SPLIT.NAME`.
    """
    if not folder.data.exists():
        return {}
    splits = read_object(folder.data)
    return flattened({name: pick_observations(arrays) for name, arrays in splits.items()})


def model_card(spec: RunSpec, description: Description, measure: Measure) -> str:
    """The model card, for a reader who has only the folder."""
    config = spec.config
    results = ', '.join(
        f'{measure.text(value)} at {int(at):,}' for at, value in description.results.items()
    )
    data = ', '.join(f'{name} {digest[:16]}' for name, digest in description.data.items())
    frames = describe_observations(spec.frame_shape, spec.observation_dtype)
    stacked = describe_observations(spec.observation_shape, spec.observation_dtype)
    noise = ', '.join(map(str, ('b', *agent_of(spec).noise_shape)))
    stacking = ''
    if config.frame_stack > 1:
        stacking = f': the last {config.frame_stack} on the last axis, the newest at its end'
    scale = '[-1, 1]'
    if spec.action_range is not None:
        low, high = spec.action_range.low, spec.action_range.high
        scale = f'from {list(low)} to {list(high)}; the programs give them in [-1, 1]'
    return textwrap.dedent(f"""\
        # {config.agent.name} on {config.task}

        | | |
        |---|---|
        | task | {config.task} |
        | agent | {config.agent.name}, seed {config.seed}, update {description.step:,} |
        | observations | {frames} |
        | actions | {spec.action_dim} numbers, {scale} |
        | policies | {', '.join(description.policies)} |
        | programs | for CPU, CUDA and TPU, written by JAX {jax.__version__} |
        | {description.measure} in {config.eval_episodes} episodes | {results or 'not evaluated'} |
        | data (sha256) | {data or 'unknown'} |

        ```python
        import fql

        policy = fql.load_policy('this/folder')
        policy.reset(seed=0)
        action = policy(observation)  # Not stacked: the policy keeps the last frames.
        ```

        Without this package (`pip install jax flatbuffers`):

        ```python
        from jax import export

        program = export.deserialize(open('{description.policies[0]}.stablehlo', 'rb').read())
        # observations: a batch of {stacked}{stacking}
        # noise: ({noise}) float32, standard normal
        actions = program.call(observations, noise)  # (b, horizon, {spec.action_dim})
        ```
        """)
