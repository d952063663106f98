import csv

import numpy as np
import pytest

from experiments.studies.theory import checks as theory_checks
from experiments.studies.theory import pictures, report
from experiments.studies.theory.checks import FAILS, HOLDS, WRONG
from preqn_jax.theory import mdps
from tests.cli.test_run import execute
from tests.ops.precision import double

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    code, output, errors = execute("theory", "--out=out", cwd=folder)
    assert code == 0, errors
    return folder / "out", output


def test_every_statement_comes_out_as_the_page_of_the_theory_has_it(program):
    out, output = program
    rows = list(csv.DictReader((out / "theory.csv").open()))
    assert {row["verdict"] for row in rows} == {HOLDS, FAILS}
    failing = [row["statement"] for row in rows if row["verdict"] == FAILS]
    assert failing == [
        "Theorem 1 for relu",
        "Lemma 3 with Eq. 14's definite K",
        "Theorem 2 with Eq. 17 as printed, <=",
        "Theorem 3's convergence as printed",
    ]
    text = " ".join(row["statement"] for row in rows)
    for number in (*(f"Theorem {n}" for n in (1, 2, 3)), *(f"Lemma {n}" for n in (1, 2, 3, 4))):
        assert number in text
    assert all(row["statement"] in output for row in rows)
    assert (out / "theory.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "theory.json").exists()


def test_what_is_printed_of_the_intuitions(program):
    _, output = program
    assert (
        "Baird's star, from K (t = 0) to a multiple of I (t = 1): spectral radius 1.0239 to 0.9993, below 1" in output
    )
    assert "10 (share 0)" in output  # a pair without data never moves


@pytest.mark.parametrize("size", [1e-12, 1e-6])
def test_a_deviation_is_seen(size):
    values = np.ones((3, 2))
    off = values.copy()
    off[1, 0] += size
    small = size < 1e-10
    assert theory_checks._equal("a", "b", off, values).verdict == (HOLDS if small else WRONG)
    assert theory_checks._at_most("a", "b", off.max(axis=1), 1.0).verdict == (HOLDS if small else WRONG)
    assert theory_checks._small("a", "b", [np.abs(off - values)[1]]).verdict == (HOLDS if small else WRONG)


def test_a_wrong_operator_is_seen(monkeypatch):
    """Lemma 1's check with an operator that takes half the step."""
    right = theory_checks._u1
    with double():
        assert [check.verdict for check in theory_checks.lemma_1()] == [HOLDS, HOLDS]
        monkeypatch.setattr(theory_checks, "_u1", lambda q, mdp, alpha: right(q, mdp, alpha / 2))
        assert [check.verdict for check in theory_checks.lemma_1()] == [WRONG, WRONG]


def test_a_counterexample_that_holds_is_seen(monkeypatch):
    monkeypatch.setattr(theory_checks, "scalar_distances", lambda moduli: np.cumprod(np.full(60, 0.9)))
    monkeypatch.setattr(theory_checks, "_changing_kernels", list)
    assert theory_checks.theorem_3()[-1].verdict == WRONG


def test_the_program_ends_with_1_where_something_is_wrong():
    checks = [theory_checks.Check("a", "b", 1, 0.5, verdict) for verdict in (HOLDS, WRONG)]
    assert "NOT AS EXPECTED" in report.table(checks)[1]
    assert report.exit_code(checks) == 1
    assert report.exit_code(checks[:1]) == 0


def test_blend_ends_at_u1():
    with double():
        blend = pictures.closer_to_u1(mdps.baird(0.99))
    mean = (6 * 5 + 5) / 7  # of K's diagonal
    assert blend.beta[-1] == pytest.approx(1 - 0.01 * 0.1 * mean / 7)
    assert blend.radius[-1] <= blend.beta[-1] + 1e-12
    assert blend.radius[0] > 1


def test_a_folder_that_cannot_be_ends_with_one_line(tmp_path):
    code, output, errors = execute("theory", "--out=/dev/null/x", cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith("error: --out=/dev/null/x")
    assert errors.count("\n") == 1
