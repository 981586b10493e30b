"""Many devices, in one process or in several: a batch is split over them, and each device holds all other arrays."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from vae_jax.errors import UserError


def make_mesh() -> Mesh:
    """All devices of all processes, on one axis."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters: whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch: its `axis` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of the devices that hold a tree of arrays; None if there are fewer than two devices."""
    sharding = getattr(next(iter(jax.tree.leaves(tree)), None), "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def place(tree: Any, sharding: Sharding) -> Any:
    """The arrays of a tree, which every process has whole, moved to the devices as `sharding` says."""

    def place_one(a: Any) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(a, sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place_one(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place_one, tree)


def local_copy(tree: Any) -> Any:
    """Arrays that are whole on each device (`replicated`), as their copy on this process's first device."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, Array) else a, tree)


def to_host(tree: Any) -> Any:
    """Arrays with any sharding as whole NumPy arrays, in every process. All processes have to call it."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def from_first_process(function: Callable[[], Any], like: Any) -> Any:
    """Call `function` in the first process only, and return its result in every process.

    like: a tree of arrays as in the result. If `function` raises, the other processes raise a UserError.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    result, failure = like, None
    if jax.process_index() == 0:
        try:
            result = function()
        except Exception as error:
            failure = error
    if multihost_utils.broadcast_one_to_all(np.int32(failure is not None)):
        raise failure or UserError("The first process has ended with an error, which it prints.")
    data, tree = jax.tree.flatten(result)
    keys = [jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in data]
    plain = [np.asarray(jax.random.key_data(a) if is_key else a) for a, is_key in zip(data, keys, strict=True)]
    same = multihost_utils.broadcast_one_to_all(plain)
    return jax.tree.unflatten(
        tree, [jax.random.wrap_key_data(a) if is_key else a for a, is_key in zip(same, keys, strict=True)]
    )


@contextmanager
def in_first_process(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter `context` in the first process only. If that raises, the other processes raise a UserError."""
    with ExitStack() as stack:

        def enter() -> np.ndarray:
            stack.enter_context(context)
            return np.zeros(())

        from_first_process(enter, np.zeros(()))
        yield


def agree(count: int, stop: int) -> tuple[int, int]:
    """The least `count` and the largest `stop` of all processes, in each process. stop: an exit status; 0 to go on."""
    if jax.process_count() == 1:
        return count, stop
    from jax.experimental import multihost_utils

    all_of = multihost_utils.process_allgather(np.array([count, stop], np.int32))
    return int(all_of[:, 0].min()), int(all_of[:, 1].max())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise UserError if a batch cannot be split evenly over the devices."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        nearest = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise UserError(f"batch_size is {batch_size}; expected a multiple of the {mesh.size} devices: {nearest}.")
