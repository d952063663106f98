"""PreQN in Optax's form: two gradient transformations whose chain is :func:`preqn_jax.preqn_update`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from preqn_jax.ops import linesearch, ntk, solvers
from preqn_jax.ops.checks import check_arguments, td_error_of
from preqn_jax.ops.linesearch import SearchInfo
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.preqn import PreQNInfo, check_options, join, preqn_direction
from preqn_jax.ops.q_functions import merge, split, unmoved
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.ops.solvers import SolveInfo
from preqn_jax.types import Array, Inputs, Params

T = TypeVar("T")


class PreconditionByNTKState(NamedTuple):
    """Of :func:`precondition_by_ntk`: diagnostics of the last update, all zero before the first."""

    info: SolveInfo


class ScaleByAlignmentLinesearchState(NamedTuple):
    """Of :func:`scale_by_alignment_linesearch`: diagnostics of the last update, all zero before the first."""

    info: SearchInfo


def preqn(
    q_fn: ntk.QFunction,
    *,
    linearize: ntk.Linearizer | None = None,
    solve: solvers.Solver | None = None,
    step_size: float | Array = 0.1,
    alignment: float | Array = 0.97,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> optax.GradientTransformationExtraArgs:
    """``optax.chain`` of :func:`precondition_by_ntk` and :func:`scale_by_alignment_linesearch`.

    Arguments are those of :func:`preqn_jax.preqn_update`, and so are the parameters that come out, bit for bit under
    jit where parameters and values are of one type; :func:`preqn_info` gives the same diagnostics. PreQN is Eqs. 22-24
    of Achiam et al. (2019).

    Example:
      >>> q_fn = lambda params, x: x @ params
      >>> params, x, td_error = jnp.zeros(3), jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> optimizer = preqn(q_fn, step_size=1.0)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params, inputs=x, td_error=td_error)
      >>> params = optax.apply_updates(params, updates)
      >>> [round(float(p), 3) for p in params], bool(preqn_info(state).accepted)
      ([1.0, 2.0, 3.0], True)
    """
    search = scale_by_alignment_linesearch(
        q_fn, alignment, step_size=step_size, decay=decay, max_backtracks=max_backtracks
    )
    return optax.chain(precondition_by_ntk(q_fn, linearize=linearize, solve=solve), search)


def precondition_by_ntk(
    q_fn: ntk.QFunction, *, linearize: ntk.Linearizer | None = None, solve: solvers.Solver | None = None
) -> optax.GradientTransformationExtraArgs:
    """PreQN's direction: sum_i Z_i grad Q(x_i) with K Z = delta, whatever updates come in.

    Added to the parameters, as ``optax.apply_updates`` does, it raises Q where delta is positive: no minus sign is
    needed. ``update`` takes by keyword

    * ``inputs``: the minibatch, a pytree whose leaves lead with B;
    * ``td_error``: delta = target - Q, ``[B]``;
    * ``all_params``: under ``optax.masked`` or ``optax.partition``, the parameters with the frozen ones. K is then
      the kernel of the others alone.

    The direction is that of Eqs. 22 and 23 in Achiam et al. (2019), in the parameters' type. A failed solve, from a NaN
    in delta for one, gives zeros and says so in the state (``info.status``).

    Args:
      q_fn: (params, inputs) -> Q-values ``[B]``, example by example.
      linearize: how K is formed; ``ntk.per_example(q_fn)`` if left out, the only one for masked parameters.
      solve: how K Z = delta is solved; ``solvers.lstsq()`` if left out.

    Raises:
      ValueError: by ``update`` at trace time, on arguments of the wrong shape or kind.
    """

    def init(params: Params) -> PreconditionByNTKState:
        zero = _zero(params)
        info = SolveInfo(jnp.zeros((), jnp.int32), zero, zero, zero, zero)
        return PreconditionByNTKState(vary(info, varying_axes(params)))

    def update(
        updates: Params,
        state: PreconditionByNTKState,
        params: Params | None = None,
        *,
        inputs: Inputs = None,
        td_error: Any = None,
        all_params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, PreconditionByNTKState]:
        del updates
        _check_keywords(extra_args, inputs=inputs, td_error=td_error, all_params=all_params)
        params, all_params, inputs = whole((params, all_params, inputs))
        q_of_params = _of_given(q_fn, params, all_params)
        check_arguments(q_of_params, params, inputs)
        if linearize is not None and q_of_params is not q_fn:
            raise ValueError("linearize must be left out for masked parameters: it would count the frozen ones too")
        linearization = (linearize or ntk.per_example(q_of_params))(params, inputs)
        direction, info = preqn_direction(linearization, td_error, solve)
        return _cast_like(direction, params), PreconditionByNTKState(_info_like(info, state.info))

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_alignment_linesearch(
    q_fn: ntk.QFunction,
    alignment: float | Array = 0.97,
    *,
    step_size: float | Array = 0.1,
    decay: float | Array = 0.8,
    max_backtracks: int | Array = 20,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates, of whatever origin, by step_size decay^k with the smallest k for which Q moves towards targets.

        cos(Q(params + step_size decay^k updates) - Q(params), delta) >= alignment,   k = 0 .. max_backtracks

    (Achiam et al. 2019, Eq. 24). Where no k does, updates become -0.0 and no parameter changes. ``update`` takes
    the keywords of :func:`precondition_by_ntk`; Q(params) is evaluated again here, which XLA does once for both under
    jit.

    Args:
      q_fn: (params, inputs) -> Q-values ``[B]``.
      alignment: the paper's eta, in (0, 1].
      step_size: first and largest factor.
      decay: factor between trials, in (0, 1).
      max_backtracks: shortenings after which the step is rejected.

    Raises:
      ValueError: on an option out of range; by ``update`` at trace time, on arguments of the wrong shape or kind.
    """
    check_options(alignment=alignment, step_size=step_size, decay=decay, max_backtracks=max_backtracks)

    def init(params: Params) -> ScaleByAlignmentLinesearchState:
        zero = _zero(params)
        info = SearchInfo(jnp.asarray(False), zero, zero, jnp.zeros((), jnp.int32))
        return ScaleByAlignmentLinesearchState(vary(info, varying_axes(params)))

    def update(
        updates: Params,
        state: ScaleByAlignmentLinesearchState,
        params: Params | None = None,
        *,
        inputs: Inputs = None,
        td_error: Any = None,
        all_params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, ScaleByAlignmentLinesearchState]:
        _check_keywords(extra_args, inputs=inputs, td_error=td_error, all_params=all_params)
        inputs, all_params = whole((inputs, all_params))
        q_of_params = _of_given(q_fn, params, all_params)
        check_arguments(q_of_params, whole(params), inputs)
        with full_precision():
            values = q_of_params(whole(params), inputs)
        free, fixed = split(q_of_params, params)
        step, info = linesearch.search(
            lambda free: q_of_params(whole(merge(free, fixed)), inputs),
            free,
            split(q_of_params, updates)[0],
            values,
            td_error_of(td_error, values),
            step_size=step_size,
            alignment=alignment,
            decay=decay,
            max_backtracks=max_backtracks,
        )
        return merge(step, unmoved(fixed)), ScaleByAlignmentLinesearchState(_info_like(info, state.info))

    return optax.GradientTransformationExtraArgs(init, update)


def preqn_info(state: optax.OptState) -> PreQNInfo:
    """The last update's :class:`PreQNInfo`, from the state of :func:`preqn` however it is wrapped.

    Raises:
      ValueError: if the state does not hold those of exactly one :func:`preqn`.
    """
    kinds = (PreconditionByNTKState, ScaleByAlignmentLinesearchState)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    found = [node.info for node in nodes if isinstance(node, PreconditionByNTKState)]
    searched = [node.info for node in nodes if isinstance(node, ScaleByAlignmentLinesearchState)]
    if len(found) != 1 or len(searched) != 1:
        raise ValueError(
            "state must hold one PreconditionByNTKState and one ScaleByAlignmentLinesearchState, as that of "
            f"preqn(...) does; got {len(found)} and {len(searched)}"
        )
    return join(_plain(found[0]), _plain(searched[0]))


def _plain(info: T) -> T:
    """With arrays for entries, which ``nnx.Optimizer`` keeps in variables of its own."""
    return type(info)(*jax.tree.leaves(info))


def _check_keywords(others: Mapping[str, Any], **own: Any) -> None:
    """Refuses a misspelt keyword: of the ``others``, which belong to other transformations of a chain, only what is
    near to one of our ``own`` that was not given.
    """
    absent = [name for name, value in own.items() if value is None]
    for name in others:
        for meant in difflib.get_close_matches(name, absent, n=1, cutoff=0.8):
            raise ValueError(f"update does not know {name}=...; did you mean {meant}=...?")
    if missing := [name for name in absent if name != "all_params"]:
        found = f", and {', '.join(sorted(others))} instead" if others else ""
        raise ValueError(
            "update needs the minibatch by keyword: update(updates, state, params, inputs=..., td_error=...); got no "
            f"{' and no '.join(missing)}{found}"
        )


def _of_given(q_fn: ntk.QFunction, params: Params | None, all_params: Params | None) -> ntk.QFunction:
    """Q as a function of the parameters that a transformation is given: all of them, or those not masked."""
    if params is None:
        raise ValueError(
            "update needs the current parameters: update(updates, state, params, inputs=..., td_error=...)"
        )
    if not any(_is_masked(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_masked)):
        return q_fn
    if all_params is None:
        raise ValueError("params are masked, and q_fn needs them all: pass update(..., all_params=params) besides")
    if any(_is_masked(leaf) for leaf in jax.tree.leaves(all_params, is_leaf=_is_masked)):
        raise ValueError("all_params must be unmasked, got MaskedNode in it: leave mask_compatible_extra_args=False")

    def fill(own: Any, frozen: Params) -> Params:
        return frozen if _is_masked(own) else own

    def q_of_unmasked(params: Params, inputs: Inputs) -> Array:
        try:
            filled = jax.tree.map(fill, params, all_params, is_leaf=_is_masked)
        except ValueError:
            expected, found = jax.tree.structure(params, is_leaf=_is_masked), jax.tree.structure(all_params)
            raise ValueError(f"all_params must be a pytree like params, {expected}, got {found}") from None
        return q_fn(filled, inputs)

    return q_of_unmasked


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _zero(params: Params) -> Array:
    """In the type of Q-values, as far as parameters tell it."""
    double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(params))
    return jnp.zeros((), jnp.float64 if double else jnp.float32)


def _info_like(info: T, previous: T) -> T:
    """In the types of the one before, so that a scan can carry it; also where they vary between devices."""
    return vary(_cast_like(info, previous), varying_axes(info, previous))


def _cast_like(tree: T, like: T) -> T:
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
