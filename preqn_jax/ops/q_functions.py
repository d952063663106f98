"""Q-functions of Flax modules (Linen and NNX) as pure functions (params, inputs) -> [B]."""

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
    """The Q-function of a Linen module: ``module.apply(params, *inputs)`` if ``inputs`` is a tuple.

    Inputs that are not a tuple are passed as one argument, ``module.apply(params, inputs)``.

    Updates move the collection ``params`` only. Every other collection, such as ``batch_stats``, is held fixed: the
    kernel does not include it, and it may contain integers. The module must not write to a collection while Q is
    evaluated; the caller updates running statistics before the update, by
    ``module.apply(..., mutable=["batch_stats"])``.

    Args:
      module: Linen module that returns Q-values ``[B]``, each of which depends on its own example only.

    Returns:
      A function (params as ``module.init`` returns them, inputs) -> Q-values ``[B]``. It raises ValueError if
      parameters or inputs do not fit the module.

    Raises:
      ValueError: if ``module`` is not a Linen module.
    """
    if not isinstance(module, nn.Module):
        found = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise ValueError(f"module must be an instance of a Linen module, got {found}; ntk.nnx_q_fn is for Flax NNX")
    return ModuleQFunction(module)


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleQFunction:
    """The result of :func:`module_q_fn`: a Q-function that updates move by ``params["params"]`` only."""

    module: nn.Module

    def __call__(self, params: Params, inputs: Inputs) -> Array:
        """Returns Q-values ``[B]``; raises ValueError if parameters or inputs do not fit the module."""
        name, arguments = type(self.module).__name__, _arguments(inputs)
        if not isinstance(params, Mapping):
            raise ValueError(_misfit(name, params, "not a mapping"))
        _check_signature(self.module, arguments)
        free, fixed = split(self, params)
        try:
            # The gradient must also stop if another function, whose parameters are not split, calls this one.
            return cast(Array, self.module.apply(merge(free, jax.lax.stop_gradient(fixed)), *arguments))
        except _MISFITS as error:
            raise ValueError(_misfit(name, params, error)) from None
        except _IN_TRAINING as error:
            reason = str(error).partition(" (https")[0]
            raise ValueError(
                f"{name} must be in evaluation mode as a Q-function (use_running_average=True, deterministic=True); "
                f"update its statistics beforehand, by module.apply(..., mutable=[...]). Flax reports: {reason}"
            ) from None


def _check_signature(module: Any, arguments: tuple[Any, ...]) -> None:
    """Raises ValueError if the module does not take this number of arguments."""
    try:
        inspect.signature(module.__call__).bind(*arguments)
    except TypeError as error:
        name = type(module).__name__
        raise ValueError(f"inputs (one argument, or a tuple of several) must fit {name}.__call__: {error}") from None


def split(q_fn: QFunction, params: Params) -> tuple[Params, dict[str, Any]]:
    """Splits parameters into those that updates move and the collections held fixed (of Linen modules, often none)."""
    if not isinstance(q_fn, ModuleQFunction) or not isinstance(params, Mapping) or "params" not in params:
        return params, {}
    of_type: Any = type(params)
    free = of_type({name: collection for name, collection in params.items() if name == "params"})
    return free, {name: collection for name, collection in params.items() if name != "params"}


def merge(free: Params, fixed: dict[str, Any]) -> Params:
    """The inverse of :func:`split`."""
    return type(free)({**free, **fixed}) if fixed else free


def unmoved(fixed: T) -> T:
    """The step that leaves every leaf bitwise unchanged: -0.0 everywhere, since -0.0 + -0.0 = -0.0."""

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
        f"params and inputs must fit {name}, with params as its init returns them, a dict {{'params': ...}}; got "
        f"{type(params).__name__}{found}; Flax reports: {reason}"
    )


def nnx_q_fn(module: Any) -> tuple[QFunction, Params]:
    """The Q-function of a Flax NNX module, and its parameters.

    Use it with :func:`preqn_jax.ntk.per_example`. :func:`preqn_jax.ntk.dense` must observe every call of a layer, which
    NNX does not support (it has no equivalent of Linen's ``intercept_methods``). Variables that are not ``nnx.Param``,
    such as running statistics and keys, are fixed at their current values: put the module into evaluation mode first
    (``module.eval()``), and call this function again after updating its statistics. ``nnx.update(module, params)``
    writes new parameters back to the module.

    Args:
      module: ``nnx.Module`` that returns Q-values ``[B]``, each of which depends on its own example only; a tuple of
        inputs is passed as several arguments.

    Returns:
      The Q-function, which raises ValueError for parameters of another module and for a BatchNorm or Dropout in
      training mode; and its parameters as an ``nnx.State``, a pytree.

    Raises:
      ValueError: if ``module`` is not an ``nnx.Module``, or has no parameters.
    """
    from flax import nnx  # here: it takes half a second to import

    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be an nnx.Module, got {type(module).__name__}; module_q_fn is for Linen")
    graph, params, rest = cast(tuple[Any, Any, Any], nnx.split(module, nnx.Param, ...))
    if not jax.tree.leaves(params):
        raise ValueError(f"module must have parameters (nnx.Param), got none in {type(module).__name__}")
    expected = _shapes(params)

    def q_fn(params: Params, inputs: Inputs) -> Array:
        if (found := _shapes(params)) != expected:  # nnx.merge relies on the order of the leaves only
            raise ValueError(f"params must fit {type(module).__name__}, {expected}, got {found}")
        new_rest = jax.tree.map(lambda leaf: leaf, rest)  # new variables, which a call may write to
        own = nnx.merge(graph, params, new_rest)
        arguments, before = _arguments(inputs), _training_state(own)
        _check_signature(own, arguments)
        values = cast(Array, own(*arguments))
        _check_evaluation_mode(type(module).__name__, before, _training_state(own))
        return values

    return q_fn, params


def _training_state(module: Any) -> dict[str, Any]:
    """The leaves that a call replaces in each BatchNorm and Dropout of an NNX module that is set to training mode.

    The mode may be overridden by an argument of the call, so that only a leaf that was replaced shows it.
    """
    from flax import nnx

    def in_training(layer: Any) -> bool:
        if isinstance(layer, nnx.BatchNorm):
            return not layer.use_running_average
        # A mask that is broadcast may be the same for all rows, and then for an example alone.
        return isinstance(layer, nnx.Dropout) and not layer.deterministic and not layer.broadcast_dims

    return {
        f"{'.'.join(map(str, path))} ({type(layer).__name__})": jax.tree.leaves(
            nnx.state(layer, (nnx.BatchStat, nnx.RngCount))
        )
        for path, layer in nnx.iter_graph(module)
        if in_training(layer)
    }


def _check_evaluation_mode(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    for layer, leaves in before.items():
        if any(old is not new for old, new in zip(leaves, after.get(layer, leaves), strict=True)):
            raise ValueError(
                f"{name} must be in evaluation mode as a Q-function, but {layer} is in training mode, in which the "
                "Q-value of a row depends on the other rows or on its position in the minibatch: call module.eval() "
                "before ntk.nnx_q_fn(module)"
            )


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """The shapes of parameters by their names, which a State and a dict of arrays have in common."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(entry.key) for entry in path if hasattr(entry, "key")): leaf.shape for path, leaf in leaves}


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
