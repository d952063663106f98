"""PreQN as Optax transformations: the chain of two is equivalent to :func:`preqn_jax.preqn_update`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.checks import check_arguments, td_error_of
from preqn_jax.ops.linesearch import Linesearch, SearchInfo, check_linesearch, search
from preqn_jax.ops.precision import full_precision
from preqn_jax.ops.preqn import PreQNInfo, info_of, magnitudes, preqn_direction
from preqn_jax.ops.q_functions import merge, split, unmoved
from preqn_jax.ops.sharding import vary, varying_axes, whole
from preqn_jax.ops.solvers import SolveInfo
from preqn_jax.types import Array, Inputs, Params

T = TypeVar("T")


class PreconditionByNTKState(NamedTuple):
    """State of :func:`precondition_by_ntk`: diagnostics of the last update, all zero before the first.

    Attributes:
      q: mean of Q before the step.
      td_error: root mean square of delta.
      solve: diagnostics of the solution of K z = delta.
    """

    q: Array
    td_error: Array
    solve: SolveInfo


class ScaleByAlignmentLinesearchState(NamedTuple):
    """State of :func:`scale_by_alignment_linesearch`: diagnostics of the last update, all zero before the first."""

    search: SearchInfo


def preqn(
    q: ntk.Linearizer | ntk.QFunction,
    *,
    solver: solvers.Solver = solvers.ridge(),
    linesearch: Linesearch = Linesearch(),
) -> optax.GradientTransformationExtraArgs:
    """PreQN (Eqs. 22-24 of Achiam et al. 2019) as ``optax.chain(precondition_by_ntk, scale_by_alignment_linesearch)``.

    This function takes the arguments of :func:`preqn_jax.preqn_update`, and its updates lead to the same parameters.
    They are bitwise equal under jit if parameters and Q-values have the same dtype. :func:`preqn_info` returns the same
    diagnostics. ``update`` takes the keyword arguments of :func:`precondition_by_ntk`.

    Examples:
      >>> q_fn = lambda params, x: x @ params
      >>> params, x, target = jnp.zeros(3), jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> optimizer = preqn(q_fn, solver=solvers.lstsq(), linesearch=Linesearch(step_size=1.0))
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(params, state, params, inputs=x, target=target)
      >>> params = optax.apply_updates(params, updates)
      >>> [round(float(p), 3) for p in params], bool(preqn_info(state).accepted)
      ([1.0, 2.0, 3.0], True)
    """
    return optax.chain(precondition_by_ntk(q, solver=solver), scale_by_alignment_linesearch(q, linesearch=linesearch))


def precondition_by_ntk(
    q: ntk.Linearizer | ntk.QFunction, *, solver: solvers.Solver = solvers.ridge()
) -> optax.GradientTransformationExtraArgs:
    """PreQN's direction, sum_i z_i grad Q(x_i) with K z = delta; it ignores the incoming updates.

    ``optax.apply_updates`` adds the direction to the parameters, which increases Q where delta is positive: no minus
    sign is needed. ``update`` takes the following keyword arguments:

    * ``inputs``: the minibatch, a pytree whose leaves have the leading axis B;
    * ``target``: targets of Q, ``[B]``, with delta = target - Q;
    * ``all_params``: needed under ``optax.masked`` or ``optax.partition`` only: all parameters, including the frozen
      ones. K is then the kernel of the parameters that are not frozen.

    The direction is that of Eqs. 22 and 23 of Achiam et al. (2019), with the dtypes of the parameters. If the solve
    fails, for example because the target contains a NaN, the direction is zero, and ``solve.status`` in the state
    states the reason.

    Args:
      q: the network, as in :func:`preqn_jax.preqn_update`; with masked parameters, it must be a plain Q-function.
      solver: solver for K z = delta.

    Raises:
      ValueError: if q is not a network, or solver not a solver. ``update`` raises it if an argument has the wrong shape
        or type (at trace time).
    """
    linearizer = ntk.linearizer_of(q)
    solvers.check_solver(solver)

    def init(params: Params) -> PreconditionByNTKState:
        zero = _zero(params)
        state = PreconditionByNTKState(zero, zero, SolveInfo(jnp.zeros((), jnp.int32), zero, zero, zero, zero))
        return vary(state, varying_axes(params))

    def update(
        updates: Params,
        state: PreconditionByNTKState,
        params: Params | None = None,
        *,
        inputs: Inputs = None,
        target: Any = None,
        all_params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, PreconditionByNTKState]:
        del updates
        _check_keywords(extra_args, inputs=inputs, target=target, all_params=all_params)
        params, all_params, inputs = whole((params, all_params, inputs))
        q_of_params = _of_given(linearizer.q_fn, params, all_params)
        masked = q_of_params is not linearizer.q_fn
        if masked and isinstance(q, ntk.Linearizer):
            raise ValueError(
                "q must be a plain Q-function for masked parameters, got a Linearizer, whose kernel would include the "
                "frozen parameters"
            )
        linearization = (ntk.per_example(q_of_params) if masked else linearizer)(params, inputs)
        td_error = td_error_of(target, linearization.values)
        direction, solved = preqn_direction(linearization, td_error, solver)
        new_state = PreconditionByNTKState(*magnitudes(linearization.values, td_error), solved)
        return _cast_like(direction, params), _state_like(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_alignment_linesearch(
    q: ntk.Linearizer | ntk.QFunction, *, linesearch: Linesearch = Linesearch()
) -> optax.GradientTransformationExtraArgs:
    """Backtracking line search: scales the incoming updates until the change of Q is aligned with the TD errors.

        cos(Q(params + step_size decay^k updates) - Q(params), delta) >= min_alignment,   k = 0 .. max_backtracks

    (Achiam et al. 2019, Eq. 24), with the smallest k for which this holds. If it holds for no k, the updates are -0.0,
    and no parameter changes. ``update`` takes the keyword arguments of :func:`precondition_by_ntk`. It evaluates
    Q(params) again; under jit, XLA evaluates it once for both transformations.

    Args:
      q: the network, a ``Linearizer`` or a plain Q-function; no kernel is computed here.
      linesearch: hyperparameters of the line search.

    Raises:
      ValueError: if a number is out of range. ``update`` raises it if an argument has the wrong shape or type (at trace
        time).
    """
    check_linesearch(linesearch)
    q_fn = ntk.linearizer_of(q).q_fn

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
        target: Any = None,
        all_params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, ScaleByAlignmentLinesearchState]:
        _check_keywords(extra_args, inputs=inputs, target=target, all_params=all_params)
        inputs, all_params = whole((inputs, all_params))
        q_of_params = _of_given(q_fn, params, all_params)
        check_arguments(q_of_params, whole(params), inputs)
        with full_precision():
            values = whole(q_of_params(whole(params), inputs))
        free, fixed = split(q_of_params, params)
        step, info = search(
            lambda free: q_of_params(whole(merge(free, fixed)), inputs),
            free,
            split(q_of_params, updates)[0],
            values,
            td_error_of(target, values),
            linesearch,
        )
        return merge(step, unmoved(fixed)), _state_like(ScaleByAlignmentLinesearchState(info), state)

    return optax.GradientTransformationExtraArgs(init, update)


def preqn_info(state: optax.OptState) -> PreQNInfo:
    """Returns the :class:`PreQNInfo` of the last update from the state of :func:`preqn`, inside of any wrappers.

    Raises:
      ValueError: if the state does not contain exactly one state of :func:`preqn`.
    """
    kinds = (PreconditionByNTKState, ScaleByAlignmentLinesearchState)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    solved = [node for node in nodes if isinstance(node, PreconditionByNTKState)]
    searched = [node for node in nodes if isinstance(node, ScaleByAlignmentLinesearchState)]
    if len(solved) != 1 or len(searched) != 1:
        raise ValueError(
            "state must contain one PreconditionByNTKState and one ScaleByAlignmentLinesearchState, like that of "
            f"preqn(...); got {len(solved)} and {len(searched)}"
        )
    # Rebuild the tuples from their leaves, since nnx.Optimizer wraps each entry in its own variable.
    q, td_error, *solution = jax.tree.leaves(solved[0])
    return info_of(q, td_error, SolveInfo(*solution), SearchInfo(*jax.tree.leaves(searched[0])))


def _check_keywords(others: Mapping[str, Any], **own: Any) -> None:
    """Raises ValueError for a missing or misspelled keyword.

    ``others`` may belong to other transformations of a chain; an error is raised only for a name that is similar to
    one of our ``own`` keywords that is missing.
    """
    absent = [name for name, value in own.items() if value is None]
    for name in others:
        for meant in difflib.get_close_matches(name, absent, n=1, cutoff=0.8):
            raise ValueError(f"update has no argument {name}=...; did you mean {meant}=...?")
    if missing := [name for name in absent if name != "all_params"]:
        found = f", but {', '.join(sorted(others))}" if others else ""
        if len(absent) == len(own) and not others:  # as when Flax calls update
            found = "; TrainState.apply_gradients passes on no keywords, so call its tx.update instead"
        raise ValueError(
            "update needs the minibatch by keyword: update(updates, state, params, inputs=..., target=...); got no "
            f"{' and no '.join(missing)}{found}"
        )


def _of_given(q_fn: ntk.QFunction, params: Params | None, all_params: Params | None) -> ntk.QFunction:
    """Q as a function of the parameters passed to a transformation: all of them, or those that are not masked."""
    if params is None:
        raise ValueError("update needs the current parameters: update(updates, state, params, inputs=..., target=...)")
    if not any(_is_masked(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_masked)):
        return q_fn
    if all_params is None:
        raise ValueError("params are masked, but q_fn needs all parameters: also pass update(..., all_params=params)")
    if any(_is_masked(leaf) for leaf in jax.tree.leaves(all_params, is_leaf=_is_masked)):
        raise ValueError("all_params must be unmasked, but contains a MaskedNode: use mask_compatible_extra_args=False")

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
    """A zero with the dtype of Q-values, as inferred from the parameters."""
    double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(params))
    return jnp.zeros((), jnp.float64 if double else jnp.float32)


def _state_like(state: T, previous: T) -> T:
    """The state with the dtypes of the previous one, and varying between devices alike, so that a scan can carry it."""
    return vary(_cast_like(state, previous), varying_axes(state, previous))


def _cast_like(tree: T, like: T) -> T:
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
