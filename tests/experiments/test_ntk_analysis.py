"""The kernel analysis at initialization: its data, its figures, its verdicts, and the command as a person uses it."""

import csv
import itertools
import json

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.studies.ntk import figures as ntk_figures
from experiments.studies.ntk import measurements
from experiments.studies.ntk.findings import decide, kendall, over_trials
from experiments.studies.ntk.measurements import ACTIVATIONS, ARCHITECTURES, Architecture, Measurement, collect, measure
from preqn_jax.networks import Critic
from preqn_jax.ops import ntk
from tests import oracles, probes  # probes: registered
from tests.programs import execute

pytestmark = pytest.mark.slow

TASKS = ("Ant-v5", "HalfCheetah-v5", "Walker2d-v5")


def table(diagonal, row_ratio, trials=1):
    """Measurements from two functions of (task, activation, width, depth, trial)."""
    kinds = [
        (task, activation, *architecture, trial)
        for task, activation, architecture, trial in itertools.product(TASKS, ACTIVATIONS, ARCHITECTURES, range(trials))
    ]
    return [
        Measurement(kind[0], "glorot_uniform", *kind[1:], diagonal=diagonal(*kind), row_ratio=row_ratio(*kind))
        for kind in kinds
    ]


def diagonal_as_published(task, activation, width, depth, trial):
    return {"relu": 4.0, "sin": 3.0, "tanh": 1.0}[activation] * width / depth


def ratio_as_published(task, activation, width, depth, trial):
    """Grows with depth; over width it grows with tanh, falls with relu, and does neither with sin."""
    by_width = {"tanh": width / 64, "relu": 64 / width, "sin": 1.0}[activation] ** 0.1
    return {"relu": 0.2, "tanh": 0.1, "sin": 0.05}[activation] * depth * by_width


def verdicts(diagonal=diagonal_as_published, row_ratio=ratio_as_published):
    return {finding.number: finding.holds for finding in decide(table(diagonal, row_ratio))}


def test_all_findings_hold_where_kernels_are_as_published():
    findings = decide(table(diagonal_as_published, ratio_as_published))
    numbers = ("1", "2a", "2b", "3", "4")
    assert [str(finding).split(":")[:2] for finding in findings] == [[f"finding {n}", " holds"] for n in numbers]
    for finding, says in zip(
        findings,
        (
            "along 9 (mean tau 1.00) and to fall with depth along 9 (mean tau -1.00) of 9 curves",
            "along 9 of 9 curves (mean tau 1.00",
            "along 3 and to fall along 3 of 9 curves (mean tau 0.00",
            "in 21 and the largest mean row ratio in 21 of 21",
            "in 21, its mean row ratio the smallest in 21, and both in 21 of 21",
        ),
        strict=True,
    ):
        assert says in finding.figures


@pytest.mark.parametrize("curve", [(1, 2, 3, 4), (1, 3, 2, 4), (2, 1, 4, 3), (1, 1, 2, 2), (4, 2, 2, 1), (5, 5, 5, 5)])
def test_tau_is_scipys_where_nothing_is_tied(curve):
    tau = kendall(curve)
    expected = stats.kendalltau(range(4), curve).statistic
    tied = len(set(curve)) < 4
    assert np.sign(tau) == np.sign(np.nan_to_num(expected))
    assert tied or tau == pytest.approx(expected)


def bent(function, curves, architecture, factor):
    """As ``function``, but multiplied at one architecture of the first ``curves`` tasks x activations."""
    places = [(task, activation) for task in TASKS for activation in ACTIVATIONS][:curves]

    def dented(task, activation, width, depth, trial):
        here = (task, activation) in places and (width, depth) == architecture
        return function(task, activation, width, depth, trial) * (factor if here else 1.0)

    return dented


@pytest.mark.parametrize(("curves", "holds"), [(2, True), (3, False)])  # 7 of 9 are above three quarters, 6 below
def test_a_trend_needs_three_quarters_of_the_curves(curves, holds):
    def turned(function):
        """Along the first curves the other way round, over both width and depth."""
        places = [(task, activation) for task in TASKS for activation in ACTIVATIONS][:curves]

        def other(task, activation, width, depth, trial):
            value = function(task, activation, width, depth, trial)
            return 1 / value if (task, activation) in places else value

        return other

    assert verdicts(diagonal=turned(diagonal_as_published))["1"] is holds
    found = verdicts(row_ratio=turned(ratio_as_published))
    assert found["2a"] is holds
    assert found["1"]  # a row ratio says nothing about diagonals


def test_a_dent_is_no_end_of_a_trend_but_of_the_strict_count():
    over_width = bent(diagonal_as_published, 9, (128, 2), 0.4)
    over_depth = bent(diagonal_as_published, 9, (64, 3), 1.6)
    ratio = bent(ratio_as_published, 9, (64, 4), 0.7)
    for diagonal, strict in (
        (over_width, "grows along 0 and falls along 9"),
        (over_depth, "along 9 and falls along 0"),
    ):
        finding = decide(table(diagonal, ratio_as_published))[0]
        assert finding.holds
        assert strict in finding.figures
    finding = decide(table(diagonal_as_published, ratio))[1]
    assert finding.holds
    assert "at every step it grows along 0" in finding.figures


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("tasks", "holds"), [(2, True), (3, False)])  # 6 of 9 curves, and all
def test_a_row_ratio_that_clearly_correlates_with_width_is_not_as_published(sign, tasks, holds):
    def row_ratio(task, activation, width, depth, trial):
        return width ** (0.1 * sign) * depth if task in TASKS[:tasks] else depth

    assert verdicts(row_ratio=row_ratio)["2b"] is holds


def test_a_level_curve_is_no_trend():
    assert not verdicts(diagonal=lambda task, activation, width, depth, trial: width)["1"]
    assert not verdicts(row_ratio=lambda task, activation, width, depth, trial: width)["2a"]


@pytest.mark.parametrize("quantity", ["diagonal", "row_ratio"])
@pytest.mark.parametrize(("tasks", "holds"), [(1, True), (2, False)])  # of three, in which relu is not the largest
def test_relu_has_to_be_largest_in_both_more_often_than_not(quantity, tasks, holds):
    published = {"diagonal": diagonal_as_published, "row_ratio": ratio_as_published}

    def sometimes(task, activation, width, depth, trial):
        if activation == "tanh" and task in TASKS[:tasks]:
            return published[quantity](task, "relu", width, depth, trial) * 1.1
        return published[quantity](task, activation, width, depth, trial)

    assert verdicts(**{quantity: sometimes})["3"] is holds


@pytest.mark.parametrize(("level", "holds"), [(2.0, True), (1.9, False)])  # of relu's 4
def test_sin_needs_a_diagonal_of_half_the_largest(level, holds):
    def diagonal(task, activation, width, depth, trial):
        return {"relu": 4.0, "sin": level, "tanh": 1.0}[activation] * width / depth

    assert verdicts(diagonal=diagonal)["4"] is holds


def test_sin_needs_high_diagonals_and_low_ratios_in_the_same_groups():
    def diagonal(task, activation, width, depth, trial):  # high in two tasks of three
        low = activation == "sin" and task == TASKS[0]
        return diagonal_as_published(task, activation, width, depth, trial) * (0.1 if low else 1.0)

    def row_ratio(task, activation, width, depth, trial):  # smallest in two tasks of three, of which one is the same
        high = activation == "sin" and task == TASKS[1]
        return ratio_as_published(task, activation, width, depth, trial) * (3.0 if high else 1.0)

    assert verdicts(diagonal=diagonal)["4"]
    assert verdicts(row_ratio=row_ratio)["4"]
    assert not verdicts(diagonal=diagonal, row_ratio=row_ratio)["4"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_figures_that_are_not_finite_show_nothing(value):
    assert verdicts(diagonal=lambda *where: value, row_ratio=lambda *where: value) == dict.fromkeys(
        ("1", "2a", "2b", "3", "4"), False
    )

    def broken(task, activation, width, depth, trial):
        return value if activation == "relu" else 1.0

    assert not verdicts(diagonal=broken, row_ratio=broken)["3"]


def test_what_decides_are_means_over_trials():
    def noisy(task, activation, width, depth, trial):  # each trial alone falls with width; the means are as published
        return diagonal_as_published(task, activation, width, depth, trial) + (trial - 1) * 1e5 / width

    rows = table(noisy, ratio_as_published, trials=3)
    assert decide(rows)[0].holds
    assert not decide([row for row in rows if row.trial == 2])[0].holds
    spread = over_trials(rows, "diagonal")["Ant-v5", "relu", Architecture(64, 2)]
    np.testing.assert_allclose(spread, [128.0, 1e5 / 64 * np.sqrt(2 / 3)])


def test_the_data_are_of_the_rails_random_policy_and_start_anew_when_an_episode_ends():
    observations, actions = collect("Walker2d-v5", 200)
    assert (observations.shape, actions.shape) == ((200, 17), (200, 6))
    assert observations.dtype == actions.dtype == np.float32
    assert set(np.unique(actions)) == {-1.0, 1.0}
    assert (np.abs(actions.mean(axis=0)) < 0.25).all()  # 3.5 standard deviations
    # Walker2d ends where the torso is below 0.8 or above 2, or leans more than 1; it starts within 0.005 of 1.25.
    assert ((observations[:, 0] > 0.8) & (observations[:, 0] < 2.0) & (np.abs(observations[:, 1]) < 1.0)).all()
    starts = (np.abs(observations[:, 0] - 1.25) <= 0.005) & (np.abs(observations[:, 8:]) <= 0.005).all(axis=1)
    assert starts[0]
    assert 2 < starts.sum() < 50
    assert len(np.unique(observations[starts], axis=0)) == starts.sum()  # every episode has a start of its own


def test_the_data_are_the_same_at_every_call():
    first, again = collect("HalfCheetah-v5", 30), collect("HalfCheetah-v5", 40)
    for column, longer in zip(first, again, strict=True):
        np.testing.assert_array_equal(column, longer[:30])


def test_a_time_limit_starts_an_episode_too():
    assert probes.PROBES["ProbeTruncated-v0"] == {"terminates": False}  # one step long
    observations, _ = collect("ProbeTruncated-v0", 4)
    np.testing.assert_array_equal(observations[:, 0], 1.0)  # all of the time is left


@pytest.mark.parametrize(("env_id", "size"), [("Ant-v5", 27 + 13 * 6), ("Ant-v4", 27 + 14 * 6)])
def test_ant_is_observed_with_its_contact_forces(env_id, size):
    observations, _ = collect(env_id, 60)
    assert observations.shape[1] == size
    assert np.any(observations[:, 27:])


def per_example_gram(critic, params, inputs):
    linearize = ntk.per_example(ntk.module_q_fn(critic))
    return np.asarray(jax.jit(lambda *arguments: linearize(*arguments).gram)(params, inputs), np.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_statistics_match_the_per_example_kernel_and_the_oracle(monkeypatch, activation):
    monkeypatch.setattr(measurements, "_BLOCK_SIZE", 4)  # two full blocks and one row
    critic = Critic((5, 5), activation)
    generator = np.random.default_rng(1)
    inputs = tuple(generator.normal(size=(9, n)).astype(np.float32) for n in (3, 2))
    params = critic.init(jax.random.key(0), *inputs)
    measured = jax.jit(measurements.kernel_statistics(critic))(params, inputs)

    def q(params, inputs):
        layers = [params["params"]["MLP_0"][f"Dense_{i}"] for i in range(3)]
        return oracles.mlp(layers, np.concatenate(inputs, axis=1), activation)[:, 0]

    gradients = oracles.gradients(q, params, inputs)
    for gram in (gradients @ gradients.T, per_example_gram(critic, params, inputs)):
        np.testing.assert_allclose(measured, [np.diag(gram).mean(), oracles.row_ratio(gram).mean()], rtol=1e-5)


def test_measurements_of_every_network():
    inputs = tuple(np.random.default_rng(2).normal(size=(6, n)).astype(np.float32) for n in (3, 2))
    inits = ["glorot_uniform", "lecun_normal"]
    rows = [row for rows in measure("Task", inputs, inits, 2, [Architecture(3, 2)]) for row in rows]
    keys = [(row.task, row.init, row.activation, row.architecture, row.trial) for row in rows]
    assert keys == [("Task", i, a, (3, 2), t) for a in ACTIVATIONS for i in inits for t in (0, 1)]
    assert len({row.diagonal for row in rows}) == len(rows)  # another initializer or seed is another network
    last = rows[-1]
    critic = Critic((3, 3), last.activation, last.init)
    gram = per_example_gram(critic, critic.init(jax.random.key(last.trial), *inputs), inputs)
    np.testing.assert_allclose(last.diagonal, np.diag(gram).mean(), rtol=1e-5)


def test_the_command_end_to_end(tmp_path):
    code, output, errors = execute(
        "ntk_analysis", "--tasks=halfcheetah", "--trials=2", "--pairs=16", "--out=results", cwd=tmp_path
    )
    assert code == 0, errors
    assert "[1/1] HalfCheetah-v5: 42 networks" in errors
    folder = tmp_path / "results"
    figures = {
        "figure5_HalfCheetah-v5_width_glorot_uniform.png",
        "figure8_HalfCheetah-v5_depth_glorot_uniform.png",
    }
    assert {path.name for path in folder.iterdir()} == {"ntk_analysis.csv", "ntk_analysis.json", *figures}
    assert all((folder / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)

    with (folder / "ntk_analysis.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["task", "init", "activation", "width", "depth", "trial", "diagonal", "row_ratio"]
    networks = {(row["activation"], int(row["width"]), int(row["depth"]), int(row["trial"])) for row in rows}
    assert networks == {(name, *a, trial) for name in ACTIVATIONS for a in ARCHITECTURES for trial in (0, 1)}
    assert len(rows) == len(networks) == 42
    assert {(row["task"], row["init"]) for row in rows} == {("HalfCheetah-v5", "glorot_uniform")}
    assert all(float(row["diagonal"]) > 0 and 0 < float(row["row_ratio"]) < np.inf for row in rows)

    record = json.loads((folder / "ntk_analysis.json").read_text())
    assert {"jax", "mujoco", "gymnasium"} <= record["versions"].keys()
    assert record["settings"]["pairs"] == 16
    printed = [line for line in output.splitlines() if line.startswith("finding")]
    assert record["findings"] == {"v5, glorot_uniform": printed}
    kinds = {"width": int, "depth": int, "trial": int, "diagonal": float, "row_ratio": float}
    parsed = [Measurement(**{name: kinds.get(name, str)(text) for name, text in row.items()}) for row in rows]
    assert printed == [str(finding) for finding in decide(parsed)]

    again = execute("ntk_analysis", "--table=results/ntk_analysis.csv", "--out=again", cwd=tmp_path)
    assert again[0] == 0, again[2]
    assert [line for line in again[1].splitlines() if line.startswith("finding")] == printed
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"ntk_analysis.json", *figures}
    refuse_tables(folder / "ntk_analysis.csv", tmp_path)


def refuse_tables(whole, folder):
    lines = whole.read_text().splitlines(keepends=True)
    (folder / "cut.csv").write_text("".join(lines[:-2]))  # two trials of one network
    (folder / "other.csv").write_text("step,return\n1,2\n")
    (folder / "empty.csv").write_text("")
    mistakes = {
        ("--table=cut.csv",): "--table=cut.csv is incomplete: HalfCheetah-v5, glorot_uniform, tanh, ",
        ("--table=other.csv",): "--table=other.csv is not an ntk_analysis.csv",
        ("--table=empty.csv",): "--table=empty.csv is incomplete",
        ("--table=none.csv",): "--table=none.csv cannot be read: No such file",
        ("--table=cut.csv", "--trials=2"): "--trials applies to new measurements",
    }
    for arguments, says in mistakes.items():
        code, output, errors = execute("ntk_analysis", *arguments, "--out=new", cwd=folder)
        assert (code, output) == (2, ""), arguments
        assert says in errors
        assert len(errors.strip().splitlines()) == 1, errors
    assert not (folder / "new").exists()


def test_every_figure_of_the_paper_is_drawn_from_its_task(tmp_path):
    rows = table(diagonal_as_published, ratio_as_published, trials=2)
    assert ntk_figures.draw(rows, tmp_path)
    names = sorted(path.name.removesuffix("_glorot_uniform.png") for path in tmp_path.iterdir())
    assert names == [
        "figure1_Walker2d-v5_width",
        "figure4_Ant-v5_width",
        "figure5_HalfCheetah-v5_width",
        "figure6_Walker2d-v5_width",
        "figure7_Ant-v5_depth",
        "figure8_HalfCheetah-v5_depth",
        "figure9_Walker2d-v5_depth",
    ]


def test_a_mistake_ends_with_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "occupied").write_text("precious")
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "suite.json").write_text("{}")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "ntk_analysis.json").write_text('{"settings": {"trials": 7}}')
    mistakes = {
        "--inits=lecun": "--inits=lecun is unknown; did you mean lecun_",
        "--pairs=10000000": "GiB of memory are available",
        "--out=occupied": "--out=occupied cannot be a directory",
        "--out=suite": "--out=suite holds a run or a suite (suite.json)",
        "--out=before": "--out=before holds results of other settings ({'trials': 7}, not {'tasks': ",
        "--task=ant": "did you mean --tasks?",
    }
    for argument, says in mistakes.items():
        code, output, errors = execute("ntk_analysis", argument, cwd=tmp_path)
        assert (code, output) == (2, ""), argument
        assert says in errors
        assert len(errors.strip().splitlines()) == 1, errors
    assert {path.name for path in tmp_path.iterdir()} == {"occupied", "suite", "before"}
