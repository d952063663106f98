"""Every lemma, theorem, equation, figure and section that the repository cites is the paper's of that number.

A citation without another author's name before it is of Achiam, Knight and Abbeel (2019). Each number has to exist
there, and what the number stands for has to be named within a few words of it.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
    set(ROOT.glob("*.md"))
    | {path for folder in ("preqn_jax", "experiments", "examples", "docs", "tests")
       for suffix in ("py", "md") for path in (ROOT / folder).rglob(f"*.{suffix}")} - {pathlib.Path(__file__)}
)  # fmt: skip

# What the paper has under each number: a regular expression for words that belong beside it.
PREQN = "PreQN|least squares|least-squares|solve|K ?Z|Algorithm 1"
NUMBERED = {
    "Eq": {
        1: "contract|modulus|expansion",
        2: r"T\\?\*|Bellman|iteration",
        3: "Q-learning|tabular|max_a|table",
        4: "Q-learning|tabular|table",
        5: "expected|step|Theorem 1",
        **dict.fromkeys((6, 7, 8), "order|Taylor|Theorem 1"),
        9: "kernel|NTK|K_ij|Theorem 1",
        10: "Theorem 1|D_rho",
        11: "leading",
        12: "U1|U₁|Lemma 1",
        13: "U2|U₂|Lemma 2",
        14: "U3|U₃|Lemma 3",
        15: "Lemma 3|linear",
        16: "Theorem 2|overshoot|own target|16 and 17|as printed|conditions",
        17: "Theorem 2|16 and 17|generali|contract|equality|printed|restrictive|Mode 3|diagonal",
        18: "Theorem 3|Lipschitz",
        **dict.fromkeys((19, 20, 21), "PreQN|U1|U₁|Lemma 3"),
        22: PREQN,
        23: PREQN + "|pull-back",
        24: PREQN + "|cos|alignment|linesearch",
        25: "natural|update",
        26: "Fisher|natural",
        27: "pseudo-inverse|natural",
        28: "PreQN|natural",
    },
    "Lemma": {
        1: "U1|U₁|u1|1 - gamma",
        2: "U2|U₂|u2|rho|data|missing|without",
        3: "linear|definite|U3|U₃|Theorem 1",
        4: "natural|pseudo|any rank|ridge|Φ|Phi|weight",
    },
    "Theorem": {
        1: "Eq. 10|Eqs. 5|order|kernel|K_ij|linear|kink|moves|Lemma 3",
        2: "U3|U₃|contract|modulus|Eqs?. 1[67]|generali|allow|table|equality|condition|printed|K_ii|beta",
        3: "Eq. 18|Lipschitz|product|step to step|converge|moduli|changes|beta_k|contraction|printed",
    },
    "Intuition": dict.fromkeys(range(1, 5), ""),
    "Failure Mode": dict.fromkeys(range(1, 5), ""),
    "Algorithm": {1: ""},
    "Figure": dict.fromkeys(range(1, 15), ""),
    "Section": dict.fromkeys([*"1234567", "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "5.1", "5.2", "5.3"], ""),
    "Appendix": dict.fromkeys("ABCD", ""),
}
# A test that is named after a statement uses what computes it.
TESTED = {
    "lemma_1": "u1", "lemma_2": "u2", "lemma_3": "u3", "lemma_4": "natural_gradient_direction|ridge",
    "theorem_1": "kernel|gram", "theorem_2": "contraction_|u3", "theorem_3": "contraction_bound|u1_modulus",
    "eq_4": "td_target", "eq_21": "preqn_step",
}  # fmt: skip

AUTHORS = re.compile(
    "Achiam|the paper|Fujimoto|Haarnoja|Rasmussen|Kingma|Lillicrap|Barto|Cody|Mnih|Schulman|Bhatnagar|Vetterli"
)
NUMBER = r"(?:\d+(?:\.\d+)?|[A-D]\b)"
CITATION = re.compile(
    rf"\b(Eq|Lemma|Theorem|Intuition|Failure Mode|Algorithm|Figure|[Ss]ection|Appendix)(?:s\b)?\.? "
    rf"({NUMBER}(?:(?:, | and |, and | to |-){NUMBER})*)"
)


def citations(text):
    """(kind, number, words around it) of each citation of the paper."""
    text = re.sub(r"\s*\n[\s#>]*", " ", text.replace("**", ""))
    for match in CITATION.finditer(text):
        sentence = re.split(r"[.;)] (?=[A-Z]|$)", text[max(0, match.start() - 110) : match.start()])
        named = AUTHORS.findall(sentence[-1])
        if named and named[-1] not in ("Achiam", "the paper"):
            continue
        kind, listed = match[1].capitalize().replace("mode", "Mode"), numbers(match[2])
        around = "".join(sentence) + text[match.start() :][:90]
        alone = len(listed) == 1 or kind == "Eq"  # "Lemmas 1 to 3" is a heading, and about none of them
        for number in listed:
            yield kind, number, around if alone else ""


def numbers(listed):
    """["3", "10", "11", "12"] of "3 and 10-12"."""
    found = []
    for dash, number in re.findall(rf"( to |-)?({NUMBER})", listed):
        if dash:
            found += map(str, range(int(found[-1]) + 1, int(number)))
        found.append(number)
    return found


def mistakes(text):
    """What is wrong with the citations in a text."""
    for kind, number, around in citations(text):
        known = {str(key): words for key, words in NUMBERED[kind].items()}
        if number not in known:
            yield f"the paper has no {kind} {number}: ...{around}..."
        elif around and not re.search(known[number], around.replace(f"{kind} {number}", "")):
            yield f"{kind} {number} is about {known[number]}: ...{around}..."


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_are_the_papers(path):
    assert not list(mistakes(path.read_text()))


def test_many_are_found():
    found = [(kind, number) for path in FILES for kind, number, _ in citations(path.read_text())]
    assert len(found) > 100
    # The page of the theory has every equation, lemma and theorem.
    cited = {(kind, number) for kind, number, _ in citations((ROOT / "docs" / "theory.md").read_text())}
    assert {(kind, str(n)) for kind in ("Lemma", "Theorem") for n in NUMBERED[kind]} <= cited
    assert {("Eq", str(n)) for n in range(2, 29)} <= cited


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("U1 Q = Q + alpha (T* Q - Q) (Achiam et al. 2019, Eq. 13).", "Eq 13"),
        ("the pull-back is sum_i z_i g_i (Achiam et al. 2019, Eqs. 10-11).", "Eq 10"),
        ("(Theorem 1 is Banach's: a contraction has one fixed point.)", "Theorem 1"),
        ("The Fisher information of Q(x_i), Eq. 27.", "Eq 27"),
        ("The same outside of the batch (Lemma 4).", "Lemma 4"),
        ("A target (Fujimoto et al. 2018, Eq. 10). PreQN's is Eq. 29.", "no Eq 29"),
        ("Figures 3 and 13 to 16.", "no Figure 15"),
        ("sections 5.1 and 5.4", "no Section 5.4"),
    ],
)
def test_wrong_ones_are_seen(text, wrong):
    assert wrong in " ".join(mistakes(text))


def test_right_ones_and_other_works_pass():
    text = """U1 (Eq. 12), **Lemma 1**. K Z = delta and the linesearch of PreQN, Eqs. 22-24.
    y = min_i Q_i (Fujimoto et al. 2018, Eq. 99), a constant. Sutton and Barto
    (2018, section 11.2). Figures 3 and 10 to 14; sections 5.1 and 5.2."""
    assert not list(mistakes(text))
    assert [number for kind, number, _ in citations(text) if kind == "Figure"] == ["3", "10", "11", "12", "13", "14"]


def named_tests():
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_((?:lemma|theorem|eq)_\d+)", node.name)):
                yield node.name, match[1], ast.get_source_segment(source, node)


def test_tests_are_named_after_what_they_test():
    wrong = [name for name, statement, source in named_tests() if not re.search(TESTED[statement], source)]
    assert not wrong
    assert {statement for _, statement, _ in named_tests()} == set(TESTED)


def test_theory_names_tests_that_exist():
    text = (ROOT / "docs" / "theory.md").read_text()
    names = set(re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py")), re.M))
    tested = re.compile(r"`((?:operators|value|eq|lemma|theorem|melo)_[a-z0-9_]+)(?:\.\.\.)?(?:\[\w+\])?`")
    missing = [stem for stem in tested.findall(text) if not any(name.startswith(f"test_{stem}") for name in names)]
    assert len(tested.findall(text)) > 15
    assert not missing
