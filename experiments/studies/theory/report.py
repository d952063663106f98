"""The report of ``experiments.theory`` on its checks."""

from __future__ import annotations

from experiments.studies.theory.checks import WRONG, Check
from preqn_jax.training import tables


def exit_code(checks: list[Check]) -> int:
    """Returns 1 if the result of any check is not as expected, else 0."""
    return int(any(check.verdict == WRONG for check in checks))


def to_csv(checks: list[Check]) -> str:
    """The table in CSV, with one row per check."""
    return tables.to_csv(checks, Check._fields)


def table(checks: list[Check]) -> list[str]:
    """The lines of a table with one row per check."""
    width = max(len(check.statement) for check in checks) + 2
    return [
        f"{check.statement:{width}}{check.verdict:17}{check.worst:<10.4g} {check.cases:>6} cases  {check.compared}"
        for check in checks
    ]
