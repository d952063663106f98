"""Distributes the members of a population over devices, which may belong to several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from preqn_jax.types import Array


class Distribution:
    """Devices over which the leading axis of arrays, the axis of members, is distributed evenly.

    Attributes:
      sharding: sharding, over the devices of all processes, of every array whose leading axis is the member axis.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        """Takes the devices of all processes, in contiguous blocks."""
        self._mesh = Mesh(np.array(devices), ("members",))
        self.sharding = NamedSharding(self._mesh, PartitionSpec("members"))

    def program(self, function: Callable[..., Any], shared: Sequence[bool], donate: int | None = None) -> Any:
        """Jits ``function`` with ``shard_map`` over the member axis of its arguments and results.

        Devices run independent loops, so no member waits for the line search of a member on another device.

        Args:
          function: function of the members on one device.
          shared: for each argument, whether it is the same for all members and has no member axis.
          donate: number of the argument whose memory may be reused for the results, if there is one.
        """
        specs = tuple(PartitionSpec() if each else self.sharding.spec for each in shared)
        sharded = jax.shard_map(
            function, mesh=self._mesh, in_specs=specs, out_specs=self.sharding.spec, check_vma=False
        )
        return jax.jit(sharded, donate_argnums=() if donate is None else donate)

    def spread(self, tree: Any) -> Any:
        """Combines arrays of this process's members into global arrays of all members."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.sharding, leaf), tree)


def local(tree: Any) -> Any:
    """Copies this process's part of global arrays to NumPy arrays."""

    def fetch(leaf: Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        arrays = [np.asarray(parts[start]) for start in sorted(parts)]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # avoids a copy of large buffers

    return jax.tree.map(fetch, tree)


def local_shapes(tree: Any) -> Any:
    """Shapes of the results of :func:`local`."""

    def shape(leaf: Array) -> jax.ShapeDtypeStruct:
        own = sum(shard.data.shape[0] for shard in leaf.addressable_shards)
        return jax.ShapeDtypeStruct((own, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, tree)
