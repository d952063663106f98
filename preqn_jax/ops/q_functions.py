"""Q-functions of Flax modules, Linen's and NNX's, as pure functions (params, inputs) -> [B]."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from preqn_jax.types import Array, Inputs, Params

QFunction = Callable[[Params, Inputs], Array]
T = TypeVar("T")


def module_q_fn(module: nn.Module) -> QFunction:
    """The Q-function of a Flax module: ``module.apply(params, *inputs)`` for a tuple, else ``(params, inputs)``.

    The collection ``params`` is free. Every other one, such as ``batch_stats``, is held fixed: it is not in the kernel,
    no update moves it, and it may hold integers. The module must not write to it while Q is evaluated; updating running
    statistics is the caller's part, ``module.apply(..., mutable=["batch_stats"])`` before the update.

    Args:
      module: Linen module that returns Q-values ``[B]``, example by example.

    Returns:
      (params as ``module.init`` returns them, inputs) -> Q-values ``[B]``; raises ValueError if they do not fit.

    Raises:
      ValueError: if it is no Linen module.
    """
    if not isinstance(module, nn.Module):
        found = f"the class {module.__name__} itself" if isinstance(module, type) else type(module).__name__
        raise ValueError(f"module must be an instance of a Linen module, got {found}; ntk.nnx_q_fn is for Flax NNX")
    return ModuleQFunction(module)


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleQFunction:
    """What :func:`module_q_fn` makes: a Q-function of which it is known that only ``params["params"]`` is free."""

    module: nn.Module

    def __call__(self, params: Params, inputs: Inputs) -> Array:
        """Q-values ``[B]``; raises ValueError if parameters and inputs do not fit the module."""
        name, arguments = type(self.module).__name__, _arguments(inputs)
        if not isinstance(params, Mapping):
            raise ValueError(_misfit(name, params, "no mapping"))
        try:
            inspect.signature(self.module.__call__).bind(*arguments)
        except TypeError as error:
            raise ValueError(f"inputs, a tuple of which becomes arguments, must fit {name}.__call__: {error}") from None
        free, fixed = split(self, params)
        try:
            # The gradient stops also where this function is called by another, which nobody splits parameters for.
            return cast(Array, self.module.apply(merge(free, jax.lax.stop_gradient(fixed)), *arguments))
        except _MISFITS as error:
            raise ValueError(_misfit(name, params, error)) from None
        except _IN_TRAINING as error:
            reason = str(error).partition(" (https")[0]
            raise ValueError(
                f"{name} must be in evaluation mode as a Q-function (use_running_average=True, deterministic=True); "
                f"update its statistics before, by module.apply(..., mutable=[...]). Flax says: {reason}"
            ) from None


def split(q_fn: QFunction, params: Params) -> tuple[Params, dict[str, Any]]:
    """The parameters that are free, and the collections that are held fixed, none unless a Linen module has others."""
    if not isinstance(q_fn, ModuleQFunction) or not isinstance(params, Mapping) or "params" not in params:
        return params, {}
    of_type: Any = type(params)
    free = of_type({name: collection for name, collection in params.items() if name == "params"})
    return free, {name: collection for name, collection in params.items() if name != "params"}


def merge(free: Params, fixed: dict[str, Any]) -> Params:
    """What :func:`split` took apart."""
    return type(free)({**free, **fixed}) if fixed else free


def unmoved(fixed: T) -> T:
    """The step that leaves every leaf bit for bit as it is: -0.0, which added to -0.0 is -0.0."""

    def of_leaf(leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        return jnp.full(jnp.shape(leaf), -0.0, jnp.float32 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype)

    return jax.tree.map(of_leaf, fixed)


_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ApplyScopeInvalidVariablesTypeError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
)


_IN_TRAINING = (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError)


def _misfit(name: str, params: Params, reason: Any) -> str:
    found = f" with {sorted(params)}" if isinstance(params, Mapping) else ""
    return (
        f"params and inputs must fit {name}, params as its init returns them, a dict {{'params': ...}}; got "
        f"{type(params).__name__}{found}, of which Flax says: {reason}"
    )


def nnx_q_fn(module: Any) -> tuple[QFunction, Params]:
    """The Q-function of a Flax NNX module, and its parameters.

    For :func:`preqn_jax.ntk.per_example`: :func:`preqn_jax.ntk.dense` needs to see every call of a layer, for which NNX
    has nothing like Linen's ``intercept_methods``. Variables that are no ``nnx.Param`` (running statistics, keys) are
    held fixed as they are now: put the module into evaluation mode first, and after updating its statistics call this
    function again. ``nnx.update(module, params)`` puts new parameters back.

    Args:
      module: ``nnx.Module``, called as :func:`module_q_fn` says, that returns Q-values ``[B]``, example by example.

    Returns:
      The Q-function, which raises ValueError on parameters of another module, and its parameters as an
      ``nnx.State``, a pytree like any other.

    Raises:
      ValueError: if it is no ``nnx.Module``, or has no parameters.
    """
    from flax import nnx  # here: it takes half a second to import

    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be an nnx.Module, got {type(module).__name__}; module_q_fn is for Linen")
    graph, params, rest = cast(tuple[Any, Any, Any], nnx.split(module, nnx.Param, ...))
    if not jax.tree.leaves(params):
        raise ValueError(f"module must have parameters (nnx.Param), got none in {type(module).__name__}")
    expected = _shapes(params)

    def q_fn(params: Params, inputs: Inputs) -> Array:
        if (found := _shapes(params)) != expected:  # nnx.merge goes by their order alone
            raise ValueError(f"params must fit {type(module).__name__}, {expected}, got {found}")
        new_rest = jax.tree.map(lambda leaf: leaf, rest)  # new variables, which a call may write to
        return nnx.merge(graph, params, new_rest)(*_arguments(inputs))

    return q_fn, params


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Of parameters by their names, which are the same in a State and in a dict of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path if hasattr(entry, "key")): leaf.shape for path, leaf in leaves}


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
