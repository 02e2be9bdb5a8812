"""`fql benchmark update`: the time and the work of one update, in every mode.

Imports neither TensorFlow nor environments nor checkpoints, so that it runs wherever JAX does.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipeline.sample_layout import SHIFT_PAD, frame_offsets
from encoders.cameras import latent_size
from fql.agents.base import Agent
from fql.agents.configs import AGENT_CONFIGS, FQLConfig
from fql.agents.fql import FQL
from fql.batch import batch_from_inputs
from fql.compiled import Arrays, Prepare, abstract_state, initial_state, make_train_step
from fql.devices import check_batch_size, make_mesh, put_batch
from fql.errors import FQLError
from fql.learner import Learner, Metrics, TrainState, make_optimizer
from fql.output import format_table
from fql.runs.run_learner import agent_of, make_learner, train_step_of
from fql.runs.run_spec import RunSpec
from fql.settings.train_config import TrainConfig, validate_config
from fql.training.resource_limits import check_memory
from scripts.benchmark.args import BenchmarkUpdate, Mode
from scripts.benchmark.json_report import write_json_report
from scripts.benchmark.timing import median_ratio, take_turns

ACTION_DIM = 5
CHANNELS = 3
STATE_DIM = 28
DEVICE_FRAMES = 20_000
"""Frames that the mode on_device keeps on the device."""
PEAK_SIZE = 2048
"""Rows and columns of the matrices whose product gives the machine's peak."""

HostArrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Variant:
    """A way to make updates, ready to run.

    Attributes:
        run: makes `updates` updates and returns when they are done.
        updates: in one call of `run`.
        flops, bytes_accessed: of one update on one device, as XLA counts them in the compiled
            program.
    """

    run: Callable[[], object]
    updates: int
    flops: float
    bytes_accessed: float


class ReferenceFQL(FQL):
    """The same networks and parameters, computed as the reference implementation does."""

    def apply(self, params: Any, head: str, *inputs: jax.Array) -> Any:
        """With one concatenated input."""
        return super().apply(params, head, jnp.concatenate(inputs, axis=-1))


def run(args: BenchmarkUpdate) -> None:
    """Measure, print a table, and write the numbers as JSON if asked to."""
    config = base_config(args)
    validate_config(config)
    check_memory_of_variants(config, args.image_size)
    if args.against:
        changed = changed_config(config, args.against)
        check_memory_of_variants(changed, args.image_size)
        make = MODES[compared_mode(args.modes)]
        variants = {'A': make(config, args.image_size), 'B': make(changed, args.image_size)}
    else:
        variants = {mode: MODES[mode](config, args.image_size) for mode in args.modes}
    report = measure(variants, args.rounds, config.agent.precision)
    report = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), **report}
    print(format_report(report))
    write_json_report(args.json, {'config': dataclasses.asdict(config), **report})


def compared_mode(modes: tuple[Mode, ...]) -> Mode:
    """The mode in which `--against` compares two configurations: the one given, else shared.

    Raises:
        FQLError: several are given.
    """
    if modes == BenchmarkUpdate.modes:
        return 'shared'
    if len(modes) > 1:
        raise FQLError(f'--against compares in one mode, not in {" ".join(modes)}')
    return modes[0]


def check_memory_of_variants(config: TrainConfig, image_size: int) -> None:
    """Raise FQLError if there is too little memory for an update."""
    spec = image_spec(config, image_size)
    learner = make_learner(spec)
    batch_bytes = config.batch_size * spec.observation_bytes
    check_memory(learner, abstract_state(learner, make_mesh()), batch_bytes)


def base_config(args: BenchmarkUpdate) -> TrainConfig:
    """The settings of `shared`."""
    agent = AGENT_CONFIGS[args.agent]()
    encoder = dataclasses.replace(agent.encoder, size=args.encoder)
    return TrainConfig(
        task='',
        batch_size=args.batch_size,
        frame_stack=args.frame_stack,
        updates_per_call=args.updates_per_call,
        agent=dataclasses.replace(
            agent, encoder=encoder, hidden_dims=args.hidden_dims, precision=args.precision
        ),
    )


def changed_config(config: TrainConfig, changes: tuple[str, ...]) -> TrainConfig:
    """A configuration with some fields, NAME=VALUE, of the run, the agent or its encoder changed.

    Raises:
        FQLError: no such field, or a value that makes no sense.
    """
    for change in changes:
        name, separator, text = change.partition('=')
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        value = tuple(value) if isinstance(value, list) else value
        field = name.replace('-', '_')
        inner = field.removeprefix('encoder.')
        if separator and inner != field and hasattr(config.agent.encoder, inner):
            config = with_encoder(config, **{inner: value})
        elif separator and hasattr(config.agent, field) and field != 'encoder':
            config = with_agent(config, **{field: value})
        elif separator and hasattr(config, field):
            config = dataclasses.replace(config, **{field: value})
        else:
            raise FQLError(f'--against must be NAME=VALUE, a setting of fql train, not {change}')
    validate_config(config)
    return config


def our_variant(config: TrainConfig, image_size: int) -> Variant:
    """The step that `fql train` runs, transfer to the device included."""
    spec = image_spec(config, image_size)
    arrays = random_arrays(agent_of(spec), config, image_size)
    return host_variant(spec, agent_of(spec), arrays, make_mesh())


def plain_variant(config: TrainConfig, image_size: int) -> Variant:
    """The same step with XLA's own convolutions and max pooling, see `encoders.cpu_convolution`."""
    spec = image_spec(config, image_size)
    agent = FQL(fql_config(config), spec.shapes, plain_encoder=True)
    return host_variant(spec, agent, random_arrays(agent, config, image_size), make_mesh())


def latents_variant(config: TrainConfig, image_size: int) -> Variant:
    """The step on cached latents of a frozen encoder."""
    spec = image_spec(with_encoder(config, mode='frozen'), image_size)
    agent = agent_of(spec)
    assert agent.encoder is not None
    width = latent_size(agent.encoder, spec.observation_shape)
    arrays = {
        'inputs': random_vectors((config.batch_size, 2, width)),
        **random_columns(agent, config.batch_size),
    }
    return host_variant(spec, agent, arrays, make_mesh(), has_latents=True)


def states_variant(config: TrainConfig, image_size: int) -> Variant:
    """The step on vector observations."""
    del image_size
    spec = RunSpec(config, (STATE_DIM,), 'float32', ACTION_DIM)
    agent = agent_of(spec)
    arrays = {
        'inputs': random_vectors((config.batch_size, 2, STATE_DIM)),
        **random_columns(agent, config.batch_size),
    }
    return host_variant(spec, agent, arrays, make_mesh())


def host_variant(
    spec: RunSpec, agent: Agent, arrays: HostArrays, mesh: Mesh, has_latents: bool = False
) -> Variant:
    """The train step on the same batch again and again, which comes from the host each time."""
    config = spec.config
    check_batch_size(config.batch_size, mesh)
    learner = Learner(agent, make_optimizer(config.agent.lr, config.agent.encoder))
    train_step = train_step_of(spec, learner, abstract_state(learner, mesh), has_latents)
    count = train_step.per_call
    state = initial_state(learner, config.seed, mesh)
    batches = [put_batch(arrays, mesh)] * count
    compiled = train_step.jitted.lower(*train_step.arguments(state, batches)).compile()

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        new = [put_batch(arrays, mesh) for _ in range(count)]
        return compiled(*train_step.arguments(state, new))

    return make_variant(step, state, compiled, count)


def on_device_variant(config: TrainConfig, image_size: int) -> Variant:
    """The step on frames that stay on the device: sampled, gathered and shifted there.

    A pipeline on the host is to be compared with this limit.
    """
    spec, mesh = image_spec(config, image_size), make_mesh()
    agent = agent_of(spec)
    learner = Learner(agent, make_optimizer(config.agent.lr, config.agent.encoder))
    frames = jnp.asarray(random_images((DEVICE_FRAMES, image_size, image_size, CHANNELS)))
    columns = {
        name: jnp.asarray(column) for name, column in random_columns(agent, DEVICE_FRAMES).items()
    }
    train_step = make_train_step(
        learner,
        device_sampler(config, agent.horizon),
        abstract_state(learner, mesh),
        config.updates_per_call,
    )
    count = train_step.per_call
    state = initial_state(learner, config.seed, mesh)
    batches = [{'inputs': frames, **columns}] * count
    compiled = train_step.jitted.lower(*train_step.arguments(state, batches)).compile()
    return make_variant(
        lambda state: compiled(*train_step.arguments(state, batches)), state, compiled, count
    )


def device_sampler(config: TrainConfig, horizon: int) -> Prepare:
    """The function from whole columns on the device to the batch of an update."""
    stack = config.frame_stack
    offsets = frame_offsets(stack, horizon)

    def prepare(arrays: Arrays, key: jax.Array, step: jax.Array) -> Any:
        rows_key, coin_key, shift_key = jax.random.split(jax.random.fold_in(key, step), 3)
        bounds = (stack, len(arrays['inputs']) - horizon)
        rows = jax.random.randint(rows_key, (config.batch_size,), *bounds)
        coin = jax.random.uniform(coin_key) < config.shift_probability
        shifts = jax.random.randint(shift_key, (config.batch_size, 2), -SHIFT_PAD, SHIFT_PAD + 1)
        lines, columns = (
            jnp.clip(jnp.arange(size) + shifts[:, i : i + 1] * coin, 0, size - 1)
            for i, size in enumerate(arrays['inputs'].shape[1:3])
        )
        places = (rows[:, None] + jnp.asarray(offsets))[:, :, None, None]
        frames = arrays['inputs'][places, lines[:, None, :, None], columns[:, None, None, :]]
        batch = {name: column[rows] for name, column in arrays.items() if name != 'inputs'}
        return batch_from_inputs({'inputs': frames, **batch}, horizon)

    return prepare


def reference_variant(config: TrainConfig, image_size: int) -> Variant:
    """An update as the reference implementation makes it.

    Three encoders, XLA's own max pooling, concatenated inputs, observations and next observations
    sent as whole stacks, one update in a call, no buffer used again, XLA's own options; float32.
    """
    config = with_encoder(with_agent(config, precision='float32'), sharing='separate')
    spec, mesh = image_spec(config, image_size), make_mesh()
    agent = ReferenceFQL(fql_config(config), spec.shapes, plain_encoder=True)
    learner = Learner(agent, make_optimizer(config.agent.lr, config.agent.encoder))
    batch = batch_from_inputs(random_arrays(agent, config, image_size))
    arrays = {name: np.asarray(x) for name, x in batch._asdict().items() if x is not None}
    state = initial_state(learner, config.seed, mesh)

    def reference_update(state: TrainState, arrays: Mapping[str, jax.Array]) -> Any:
        return learner.update(state, type(batch)(**arrays))

    compiled = jax.jit(reference_update).lower(state, put_batch(arrays, mesh)).compile()
    return make_variant(lambda state: compiled(state, put_batch(arrays, mesh)), state, compiled, 1)


def fql_config(config: TrainConfig) -> FQLConfig:
    """The agent's settings, which must be FQL's.

    Raises:
        FQLError: another agent has no such mode.
    """
    if not isinstance(config.agent, FQLConfig):
        raise FQLError(f'modes reference and plain are for agent fql only, not {config.agent.name}')
    return config.agent


def make_variant(
    step: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    compiled: Any,
    updates: int,
) -> Variant:
    """A variant whose state continues from call to call."""
    # XLA counts the body of a loop once, however often it runs.
    costs = compiled.cost_analysis()
    states = [state]

    def run_once() -> None:
        states[0], metrics = step(states[0])
        jax.block_until_ready((states[0], metrics))

    return Variant(run_once, updates, costs['flops'], costs['bytes accessed'])


def image_spec(config: TrainConfig, image_size: int) -> RunSpec:
    """The specification of a run on square images."""
    shape = (image_size, image_size, CHANNELS * config.frame_stack)
    return RunSpec(config, shape, 'uint8', ACTION_DIM)


def with_agent(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration whose agent differs."""
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **changes))


def with_encoder(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration whose encoder differs."""
    return with_agent(config, encoder=dataclasses.replace(config.agent.encoder, **changes))


def random_arrays(agent: Agent, config: TrainConfig, image_size: int) -> HostArrays:
    """A batch as the loader gives it."""
    count = len(frame_offsets(config.frame_stack, agent.horizon))
    frames = random_images((config.batch_size, count, image_size, image_size, CHANNELS))
    return {'inputs': frames, **random_columns(agent, config.batch_size)}


def random_images(shape: tuple[int, ...]) -> np.ndarray:
    """Noise; no time depends on what the images show."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def random_vectors(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def random_columns(agent: Agent, size: int) -> HostArrays:
    """Actions, rewards, masks, and what else the agent needs."""
    rng = np.random.default_rng(1)
    steps = () if agent.horizon == 1 else (agent.horizon,)
    ones = np.ones((size, *steps), np.float32)
    extra = {
        'valid': ones,
        'next_actions': rng.uniform(-1, 1, (size, ACTION_DIM)).astype(np.float32),
        'next_actions_valid': np.ones(size, np.float32),
    }
    return {
        'actions': rng.uniform(-1, 1, (size, *steps, ACTION_DIM)).astype(np.float32),
        'rewards': -ones,
        'masks': ones,
        **{name: extra[name] for name in agent.needs},
    }


MODES: dict[str, Callable[[TrainConfig, int], Variant]] = {
    'reference': reference_variant,
    'separate': lambda config, size: our_variant(with_encoder(config, sharing='separate'), size),
    'plain': plain_variant,
    'shared': our_variant,
    'frozen': lambda config, size: our_variant(with_encoder(config, mode='frozen'), size),
    'latents': latents_variant,
    'states': states_variant,
    'on_device': on_device_variant,
}


def measure(variants: Mapping[str, Variant], rounds: int, precision: str) -> dict[str, Any]:
    """Seconds, work, and the share of the machine's peak, of each variant in turn."""
    matrix = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE), jnp.dtype(precision))
    multiply = jax.jit(jnp.matmul)
    seconds = take_turns(
        {
            **{name: variant.run for name, variant in variants.items()},
            'matmul': lambda: jax.block_until_ready(multiply(matrix, matrix)),
        },
        rounds,
    )
    peak = 2 * PEAK_SIZE**3 / min(seconds.pop('matmul'))
    first = next(iter(variants))
    per_update = {name: [s / variants[name].updates for s in seconds[name]] for name in variants}
    medians = {name: statistics.median(per_update[name]) for name in variants}
    return {
        'peak_gflops': peak / 1e9,
        'compared_with': first,
        'variants': {
            name: {
                'ms_per_update': 1e3 * medians[name],
                'times_faster': median_ratio(per_update, first, name),
                'gflop_per_update': variant.flops / 1e9,
                'gigabytes_per_update': variant.bytes_accessed / 1e9,
                'gflops': variant.flops / medians[name] / 1e9,
                'share_of_peak': variant.flops / medians[name] / peak,
                'seconds': per_update[name],
            }
            for name, variant in variants.items()
        },
    }


def format_report(report: Mapping[str, Any]) -> str:
    """A line for each variant."""
    device = f'{report["devices"]} x {report["device"]}'
    columns = {
        'ms_per_update': ('ms/update', '.1f'),
        'times_faster': (f'x {report["compared_with"]}', '.2f'),
        'gflop_per_update': ('GFLOP', '.1f'),
        'gigabytes_per_update': ('GB', '.1f'),
        'gflops': ('GFLOP/s', '.1f'),
        'share_of_peak': ('of peak', '.0%'),
    }
    header = [device, *(title for title, _ in columns.values())]
    rows = [
        [name, *(format(variant[key], shape) for key, (_, shape) in columns.items())]
        for name, variant in report['variants'].items()
    ]
    peak = f'peak: {report["peak_gflops"]:.0f} GFLOP/s, the product of {PEAK_SIZE}^2 matrices'
    return f'{format_table(header, rows)}\n{peak}'
