"""`fql benchmark update`: the time and the work of one update, in every mode."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from encoders.impala import ImpalaEncoder
from fql.agent import abstract_state, agent_networks, initial_state
from fql.batch import Batch, batch_from_frames
from fql.config import AgentConfig, TrainConfig, validate_config
from fql.devices import check_batch_size, make_mesh, put_batch
from fql.errors import FQLError
from fql.losses import Metrics
from fql.networks import Networks, Params
from fql.reports.tables import format_table, write_json
from fql.reports.timing import median_ratio, take_turns
from fql.train_state import TrainState
from fql.train_step import TrainStep, make_train_step, runs_best_alone, scan_updates
from fql.training.run_folder import RunSpec
from fql.update import update
from scripts.benchmark.args import BenchmarkUpdate

ACTION_DIM = 5
CHANNELS = 3
PEAK_SIZE = 2048
"""Rows and columns of the matrices whose product gives the machine's peak."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to make updates, ready to run.

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


def run(args: BenchmarkUpdate) -> None:
    """Measures, prints a table and writes the numbers as JSON if asked to."""
    config = base_config(args)
    validate_config(config)
    if args.against:
        ways = {
            'A': our_way(config, args.image_size),
            'B': our_way(changed_config(config, args.against), args.image_size),
        }
    else:
        ways = {mode: MODES[mode](config, args.image_size) for mode in args.modes}
    report = measure(ways, args.rounds, config.agent.precision)
    report = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), **report}
    print(format_report(report))
    write_json(args.json, {'config': dataclasses.asdict(config), **report})


def base_config(args: BenchmarkUpdate) -> TrainConfig:
    """The settings of `shared`."""
    agent = AgentConfig(
        encoder=args.encoder, hidden_dims=args.hidden_dims, precision=args.precision
    )
    return TrainConfig(
        task='',
        batch_size=args.batch_size,
        frame_stack=args.frame_stack,
        updates_per_call=args.updates_per_call,
        agent=agent,
    )


def changed_config(config: TrainConfig, changes: tuple[str, ...]) -> TrainConfig:
    """A configuration with some fields, NAME=VALUE, of the run or of the agent changed.

    Raises:
        FQLError: no such field, or a value that makes no sense.
    """
    agent_fields = {field.name for field in dataclasses.fields(AgentConfig)}
    run_fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for change in changes:
        name, separator, text = change.partition('=')
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        setting = {name.replace('-', '_'): tuple(value) if isinstance(value, list) else value}
        if separator and setting.keys() <= agent_fields:
            config = with_agent(config, **setting)
        elif separator and setting.keys() <= run_fields:
            config = dataclasses.replace(config, **setting)  # type: ignore[arg-type]
        else:
            raise FQLError(f'--against {change}: not NAME=VALUE of a setting of fql train')
    validate_config(config)
    return config


def our_way(config: TrainConfig, image_size: int, num_devices: int | None = None) -> Way:
    """The step that `fql train` runs, transfer to the device included."""
    mesh = make_mesh(num_devices)
    check_batch_size(config.batch_size, mesh)
    spec = run_spec(config, image_size)
    return train_step_way(
        spec, make_train_step(spec, mesh), random_arrays(config, image_size), mesh
    )


def plain_way(config: TrainConfig, image_size: int) -> Way:
    """The same step with XLA's own convolutions and max pooling, see `encoders.cpu_convolution`."""
    spec = run_spec(config, image_size)
    networks = agent_networks(spec)
    encoder = cast(ImpalaEncoder, networks.encoder).clone(plain=True)
    networks = dataclasses.replace(networks, encoder=encoder)
    mesh = make_mesh()
    train_step = scan_updates(
        lambda state, arrays: update(networks, config.agent, state, batch_from_frames(arrays)),
        abstract_state(spec, mesh),
    )
    return train_step_way(spec, train_step, random_arrays(config, image_size), mesh)


def latents_way(config: TrainConfig, image_size: int) -> Way:
    """The step on cached latents of a frozen encoder."""
    spec = run_spec(with_agent(config, encoder_mode='frozen'), image_size)
    encoder = agent_networks(spec).encoder
    observations = jnp.zeros((1, *spec.observation_shape), jnp.uint8)
    assert encoder is not None
    shape = jax.eval_shape(encoder.init_with_output, jax.random.key(0), observations)[0].shape
    latents = np.random.default_rng(0).normal(size=(config.batch_size, 2, shape[-1]))
    arrays = {'frames': latents.astype(np.float32), **random_vectors(config.batch_size)}
    mesh = make_mesh()
    return train_step_way(spec, make_train_step(spec, mesh), arrays, mesh)


def train_step_way(spec: RunSpec, train_step: TrainStep, arrays: Arrays, mesh: Mesh) -> Way:
    """A train step on the same batch again and again."""
    count = 1 if runs_best_alone() else spec.config.updates_per_call
    state = initial_state(spec, mesh)
    batches = [put_batch(arrays, mesh)] * count
    compiled = train_step.lower(state, batches).compile()  # type: ignore[attr-defined]

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        return compiled(state, [put_batch(arrays, mesh) for _ in range(count)])

    return make_way(step, state, compiled, count)


def reference_way(config: TrainConfig, image_size: int) -> Way:
    """An update as the reference implementation makes it.

    Three encoders, XLA's own max pooling, concatenated inputs, observations and next observations
    sent as whole stacks, one update in a call, no buffer used again, XLA's own options; float32.
    """
    spec = run_spec(with_agent(config, encoder_sharing='separate', precision='float32'), image_size)
    networks = ReferenceNetworks(**vars(agent_networks(spec)))
    batch = batch_from_frames(random_arrays(config, image_size))
    mesh = make_mesh()
    state = initial_state(spec, mesh)

    def reference_update(state: TrainState, arrays: Mapping[str, jax.Array]) -> Any:
        return update(networks, spec.config.agent, state, Batch(**arrays))

    def put() -> dict[str, jax.Array]:
        return put_batch({name: np.asarray(x) for name, x in batch._asdict().items()}, mesh)

    compiled = jax.jit(reference_update).lower(state, put()).compile()
    return make_way(lambda state: compiled(state, put()), state, compiled, 1)


@dataclass(frozen=True)
class ReferenceNetworks(Networks):
    """The same networks and parameters, computed as the reference implementation does."""

    def encode(self, encoder_params: Params, observations: jax.Array) -> jax.Array:
        """With XLA's own convolutions and max pooling."""
        encoder = cast(ImpalaEncoder, self.encoder).clone(plain=True)
        return cast(jax.Array, encoder.apply({'params': encoder_params}, observations))

    def qs(self, params: Params, latents: jax.Array, actions: jax.Array) -> jax.Array:
        """With one concatenated input."""
        return super().qs(params, *_as_one(latents, actions))

    def velocity(
        self, params: Params, latents: jax.Array, x: jax.Array, time: jax.Array
    ) -> jax.Array:
        """With one concatenated input."""
        inputs, nothing = _as_one(latents, x, time)
        return super().velocity(params, inputs, nothing, nothing)

    def one_step(self, params: Params, latents: jax.Array, noise: jax.Array) -> jax.Array:
        """With one concatenated input."""
        return super().one_step(params, *_as_one(latents, noise))


def _as_one(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All inputs in the place of the first one, and nothing in that of another."""
    return jnp.concatenate(inputs, axis=-1), inputs[0][:, :0]


def make_way(
    step: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    compiled: Any,
    updates: int,
) -> Way:
    """A way whose state goes on from call to call."""
    # XLA counts the body of a loop once, however often it runs.
    costs = compiled.cost_analysis()
    states = [state]

    def run_once() -> None:
        states[0], metrics = step(states[0])
        jax.block_until_ready((states[0], metrics))

    return Way(run_once, updates, costs['flops'], costs['bytes accessed'])


def run_spec(config: TrainConfig, image_size: int) -> RunSpec:
    """The specification of a run on square images."""
    shape = (image_size, image_size, CHANNELS * config.frame_stack)
    return RunSpec(config, shape, 'uint8', ACTION_DIM)


def with_agent(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration whose agent differs."""
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **changes))


def random_arrays(config: TrainConfig, image_size: int) -> Arrays:
    """A batch as the loader gives it."""
    frame = (image_size, image_size, CHANNELS)
    frames = random_images((config.batch_size, config.frame_stack + 1, *frame))
    return {'frames': frames, **random_vectors(config.batch_size)}


def random_images(shape: tuple[int, ...]) -> np.ndarray:
    """Noise; no time depends on what the images show."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def random_vectors(batch_size: int) -> Arrays:
    """Actions, rewards and masks."""
    rng = np.random.default_rng(1)
    return {
        'actions': rng.uniform(-1, 1, (batch_size, ACTION_DIM)).astype(np.float32),
        'rewards': -np.ones(batch_size, np.float32),
        'masks': np.ones(batch_size, np.float32),
    }


MODES: dict[str, Callable[[TrainConfig, int], Way]] = {
    'reference': reference_way,
    'separate': lambda config, size: our_way(with_agent(config, encoder_sharing='separate'), size),
    'plain': plain_way,
    'shared': our_way,
    'frozen': lambda config, size: our_way(with_agent(config, encoder_mode='frozen'), size),
    'latents': latents_way,
}


def measure(ways: Mapping[str, Way], rounds: int, precision: str) -> dict[str, Any]:
    """Seconds, work, and the share of the machine's peak, of each way in turn."""
    matrix = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE), jnp.dtype(precision))
    multiply = jax.jit(jnp.matmul)
    seconds = take_turns(
        {
            **{name: way.run for name, way in ways.items()},
            'matmul': lambda: jax.block_until_ready(multiply(matrix, matrix)),
        },
        rounds,
    )
    peak = 2 * PEAK_SIZE**3 / min(seconds.pop('matmul'))
    first = next(iter(ways))
    per_update = {name: [s / ways[name].updates for s in seconds[name]] for name in ways}
    return {
        'peak_gflops': peak / 1e9,
        'compared_with': first,
        'ways': {
            name: {
                'ms_per_update': 1e3 * statistics.median(per_update[name]),
                'times_faster': median_ratio(per_update, first, name),
                'gflop_per_update': way.flops / 1e9,
                'gigabytes_per_update': way.bytes_accessed / 1e9,
                'gflops': way.flops / statistics.median(per_update[name]) / 1e9,
                'share_of_peak': way.flops / statistics.median(per_update[name]) / peak,
                'seconds': per_update[name],
            }
            for name, way in ways.items()
        },
    }


def format_report(report: Mapping[str, Any]) -> str:
    """A line for each way."""
    header = [
        f'{report["devices"]} x {report["device"]}',
        'ms/update',
        f'x {report["compared_with"]}',
        'GFLOP',
        'GB',
        'GFLOP/s',
        'of peak',
    ]
    rows = [
        [
            name,
            f'{way["ms_per_update"]:.1f}',
            f'{way["times_faster"]:.2f}',
            f'{way["gflop_per_update"]:.1f}',
            f'{way["gigabytes_per_update"]:.1f}',
            f'{way["gflops"]:.1f}',
            f'{way["share_of_peak"]:.0%}',
        ]
        for name, way in report['ways'].items()
    ]
    peak = f'peak: {report["peak_gflops"]:.0f} GFLOP/s, the product of {PEAK_SIZE}^2 matrices'
    return f'{format_table(header, rows)}\n{peak}'
