"""Data-parallel training over all devices of all processes.

The batch is split along the mesh's one axis, `data`; parameters are on every device, or with
`shard_params` the large ones are spread over the devices too and gathered where they are used
(Rajbhandari et al. 2020, ZeRO; 'FSDP'). XLA inserts the communication.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fql.errors import FQLError

AXIS = 'data'
LARGE = 2**16
"""Leaves of at least this many elements are spread by `shard_params`."""

Tree = TypeVar('Tree')


def make_mesh(num_devices: int | None = None) -> Mesh:
    """The mesh of the first `num_devices` in one row; of all by default."""
    devices = jax.devices()[:num_devices]
    # Padding, and so the encoder, does not work with JAX's default, explicit axes.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def local_mesh() -> Mesh:
    """All devices of this process."""
    return Mesh(np.asarray(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))


def one_device_mesh() -> Mesh:
    """The first device of this process, for work that only one process does."""
    return Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,), axis_types=(AxisType.Auto,))


def state_shardings(shapes: Tree, mesh: Mesh, shard_params: bool) -> Tree:
    """The sharding of every leaf: replicated, or large ones split along their longest axis."""

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes: list[str | None] = [None] * len(leaf.shape)
        divisible = [i for i, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if shard_params and leaf.size >= LARGE and divisible:
            axes[max(divisible, key=lambda i: leaf.shape[i])] = AXIS
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(sharding, shapes)


def abstract_on(shapes: Tree, mesh: Mesh, shard_params: bool) -> Tree:
    """Shapes and dtypes with the shardings of `state_shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh, shard_params),
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise FQLError if a batch cannot be split evenly over the devices."""
    if batch_size % mesh.size:
        raise FQLError(f'batch-size {batch_size} is not a multiple of the {mesh.size} devices')


def compiler_options() -> dict[str, str]:
    """Options for XLA when it compiles what runs an encoder many times.

    On CPUs XLA would compute convolutions by YNNPACK, whose weight gradients take about twice as
    long as Eigen's: only YNNPACK's matrix products are kept. Optimisation barriers stay until code
    is generated. Otherwise they are removed before operations are fused, and everything that reads
    max pooling computes it again, element by element in transposed order.
    """
    if jax.default_backend() != 'cpu':
        return {}
    return {
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT',
        'xla_disable_hlo_passes': 'cse_barrier_expander',
    }


def run_once_options() -> dict[str, int]:
    """Options for XLA when it compiles what runs once: on CPUs, to halve the compilation time."""
    return {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else {}


def put_batch(arrays: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a batch, (b / processes, ...), as arrays (b, ...) over the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array), dict(arrays)
    )


def local_copy(tree: Tree, mesh: Mesh) -> Tree:
    """A tree of arrays that this process can use alone; all processes have to call this."""
    replicated = NamedSharding(mesh, PartitionSpec())
    gathered = jax.jit(lambda tree: tree, out_shardings=replicated)(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


def not_finite(tree: Any) -> list[str]:
    """Paths of the arrays that hold a NaN or infinite number; all processes call this."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator='/'): not all(
            np.isfinite(np.asarray(shard.data)).all()
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    flags = np.array(list(found.values()), bool)
    if jax.process_count() > 1:
        flags = multihost_utils.process_allgather(flags).any(axis=0)
    return [name for name, flag in zip(found, flags, strict=True) if flag]


def differing_processes(text: str) -> list[int]:
    """The processes whose text is not that of the first one; all processes call this."""
    if jax.process_count() == 1:
        return []
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    return [int(i) for i in np.flatnonzero((digests != digests[0]).any(axis=1))]


def wait_for_all_processes(name: str) -> None:
    """Wait until every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
