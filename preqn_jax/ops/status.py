"""The outcome of an update."""

from __future__ import annotations

import enum

from preqn_jax.types import Array


class Status(enum.IntEnum):
    """Why an update changed the parameters, or did not."""

    ACCEPTED = 0
    NO_TD_ERROR = 1  # delta = 0: nothing to correct, an accepted no-op
    NOT_ALIGNED = 2  # no step size reached min_alignment; if this persists, see ntk.check_example_by_example
    NON_FINITE_TD_ERROR = 3
    NON_FINITE_KERNEL = 4
    NON_FINITE_SOLUTION = 5


def failed(status: Array) -> Array:
    """Whether the update has no search direction, bool []."""
    return status >= Status.NON_FINITE_TD_ERROR
