"""The same strictness as for the operators of tests/ops."""

from tests.ops.conftest import _strict_dtypes, x64  # noqa: F401  (fixtures)
