"""Q-functions of Flax modules, Linen's and NNX's, as pure functions (params, inputs) -> [B]."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax
import flax.linen as nn
import jax

from preqn_jax.types import Array, Inputs, Params

QFunction = Callable[[Params, Inputs], Array]


def module_q_fn(module: nn.Module) -> QFunction:
    """The Q-function of a Flax module: ``module.apply(params, *inputs)`` for a tuple, else ``(params, inputs)``.

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
    name = type(module).__name__

    def q_fn(params: Params, inputs: Inputs) -> Array:
        if not isinstance(params, Mapping):
            raise ValueError(_misfit(name, params, "no mapping"))
        arguments = _arguments(inputs)
        try:
            inspect.signature(module.__call__).bind(*arguments)
        except TypeError as error:
            raise ValueError(f"inputs, a tuple of which becomes arguments, must fit {name}.__call__: {error}") from None
        try:
            return cast(Array, module.apply(params, *arguments))
        except _MISFITS as error:
            raise ValueError(_misfit(name, params, error)) from None

    return q_fn


_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ApplyScopeInvalidVariablesTypeError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
)


def _misfit(name: str, params: Params, reason: Any) -> str:
    found = f" with {sorted(params)}" if isinstance(params, Mapping) else ""
    return (
        f"params and inputs must fit {name}, params as its init returns them, a dict {{'params': ...}}; got "
        f"{type(params).__name__}{found}, of which Flax says: {reason}"
    )


def nnx_q_fn(module: Any) -> tuple[QFunction, Params]:
    """The Q-function of a Flax NNX module, and its parameters.

    For :func:`preqn_jax.ntk.per_example`: :func:`preqn_jax.ntk.dense` needs to see every call of a layer, for which NNX
    has nothing like Linen's ``intercept_methods``. Variables that are no ``nnx.Param`` (running statistics, keys) stay
    as they are now; put the module into evaluation mode first. ``nnx.update(module, params)`` puts new parameters back.

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
