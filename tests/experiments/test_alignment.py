"""The report of experiments.alignment, on runs made up by hand."""

import csv
import shutil

import numpy as np
import pytest

from experiments.suites import alignment as alignment_report
from experiments.suites import stored as stored_runs
from experiments.suites.report import Cell
from experiments.suites.suite import Job
from preqn_jax.settings import SettingError
from preqn_jax.training import plots
from preqn_jax.training.reporters import UpdatesRecord
from tests.programs import execute

pytestmark = pytest.mark.slow

STEPS = 4000
# cos of the first half of the updates and of the second, and whether the second was accepted.
RUNS = {"preqn-sin": (0.99, 0.5, False), "td3-relu": (0.2, 0.4, None)}


def job_of(name, seed, *overrides):
    variant = alignment_report.VARIANTS[name]
    return Job(variant._replace(overrides=(*variant.overrides, "update_after=50", *overrides)), "hopper", seed, STEPS)


def make_run(folder, job, first, second, accepted):
    work = folder / job.name
    work.mkdir()
    rows = "".join(f"{step},{job.seed},{step / 100}\n" for step in range(1000, STEPS + 1, 1000))
    (work / "metrics.csv").write_text("step,seed,return_mean\n" + rows)
    record = UpdatesRecord(work / "updates", first_step=0)
    for step, value in ((STEPS // 2, first), (STEPS, second)):
        info = {"update_alignment": np.full((1, STEPS // 2), value)}
        if accepted is None:  # the two agents differ in what they report
            info["heldout_alignment"] = np.full((1, STEPS // 2), value - 0.05)
        else:
            info["accepted"] = np.full((1, STEPS // 2), step < STEPS or accepted)
        record.add(step, info)
        record.write()


@pytest.fixture
def jobs(tmp_path):
    jobs = [job_of(name, seed) for name in RUNS for seed in (0, 1)]
    for job in jobs:
        make_run(tmp_path, job, *RUNS[job.variant.name])
    return jobs


def test_every_update_counts_and_refused_steps_stand_apart(jobs, tmp_path):
    text = alignment_report.write(jobs, tmp_path)
    assert "| preqn-sin | hopper | 2 | 8000 | 0.7450 |  | 0.990000 | 0.5000 | 0 | 0.500000 |" in text
    assert "| td3-relu | hopper | 2 | 8000 | 0.3000 | 0.2500 | 0.200000 | 1.0000 | 8000 | 1.000000 |" in text
    with (tmp_path / "alignment.csv").open() as file:
        assert [row["lowest_accepted"] for row in csv.DictReader(file)] == ["0.990000", "0.200000"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure3.png", "figure11_Hopper-v5.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))


def test_alignment_and_returns_are_drawn_over_environment_steps(jobs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "row_of_panels", lambda panels, out, title="": drawn.update({out.name: panels}))
    alignment_report.write(jobs, tmp_path)
    (panel,) = drawn["figure3.png"]
    assert panel.title == "Hopper-v5"
    steps, values = panel.lines["preqn-sin"]  # a bin is 1000 updates; the first half of them came at step 2000
    np.testing.assert_array_equal(steps, [2000, 2000, 4000, 4000])
    np.testing.assert_allclose(values, [[0.99, 0.99, 0.5, 0.5]] * 2)
    alignment, near, returns = drawn["figure11_Hopper-v5.png"]
    assert alignment.lines.keys() == returns.lines.keys() == set(RUNS)
    assert near.lines.keys() == {"preqn-sin"}
    np.testing.assert_array_equal(returns.lines["td3-relu"][0], [1000, 2000, 3000, 4000])


def test_a_damaged_record_is_named(jobs, tmp_path):
    path = next((tmp_path / jobs[0].name / "updates").glob("*.npz"))
    whole = path.read_bytes()
    for damaged in (whole[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(SettingError, match=r"\.npz is damaged"):
            alignment_report.write(jobs, tmp_path)


def test_a_run_without_a_record_is_named(jobs, tmp_path):
    shutil.rmtree(tmp_path / jobs[1].name / "updates")
    with pytest.raises(SettingError, match=rf"{jobs[1].name} has no record of its updates"):
        alignment_report.write(jobs, tmp_path)


def test_an_accepted_step_below_eta_is_counted(tmp_path):
    job = job_of("preqn-sin", 0, "agent.min_alignment=0.995")
    make_run(tmp_path, job, *RUNS["preqn-sin"])
    assert (
        "| preqn-sin | hopper | 1 | 4000 | 0.7450 |  | 0.990000 | 1.0000 | 2000 | 0.500000 |"
        in alignment_report.write([job], tmp_path)
    )


STORED = {"td3-sin_ant_seed0": (0.2, 0.5), "td3-sin_ant_seed1": (0.4, 0.6), "preqn-relu_ant_seed0": (0.9, 0.8)}


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "stored"
    folder.mkdir()
    for name, (first, second) in STORED.items():
        seed = name[-1]
        rows = ["step,seed,return_mean,updates,update_alignment", f"5000,{seed},-1,0,nan",
                f"10000,{seed},1,100,{first}", f"20000,{seed},2,300,{second}"]  # fmt: skip
        if name.startswith("td3"):
            heldout = ("heldout_alignment", "nan", "0.1", "0.3")
            rows = [f"{row},{value}" for row, value in zip(rows, heldout, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def read_stored(folder):
    return stored_runs.read(folder, list(alignment_report.VARIANTS), "update_alignment")


def test_stored_runs_are_pooled_over_seeds(stored, tmp_path):
    text = alignment_report.write_stored(read_stored(stored), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure3.png", "figure14_Ant-v5.png"}
    with (tmp_path / "pooled.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["algo"], first["seeds"], second["algo"], second["seeds"]) == ("preqn-relu", "1", "td3-sin", "2")
    # An interval counts by its updates, and one without any not at all.
    assert second["alignment_by_seed"] == "0.4250, 0.5500"
    assert second["alignment"] == "0.4875"
    assert (first["heldout_alignment"], second["heldout_alignment"]) == ("", "0.2500")
    assert second["final_by_seed"] == "0.7, 0.7"
    assert "| td3-sin | ant | 2 | 0.4875 | 0.4250, 0.5500 | 0.2500 |" in text


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("notes.csv", "", r"notes.csv is not <variant>_<task>_seed<seed>.csv"),
        ("td3-sin_moon_seed0.csv", "", "allowed tasks: ant, "),
        ("td3-sin_ant_seed2.csv", "", "seed2.csv is damaged"),
        ("preqn-sin_ant_seed0.csv", "step,seed,return_mean,update_alignment\n", "has no evaluation yet"),
        ("td3-sin_ant_seed2.csv", "step,seed,return_mean\n1,2,3\n", "has no column update_alignment"),
        (
            "td3-sin_ant_seed2.csv",
            "step,seed,return_mean,updates,update_alignment\n9,2,0,1,1\n",
            "must have evaluations at the same steps",
        ),
    ],
)
def test_stored_runs_that_cannot_be_pooled_are_named(name, text, says, stored, tmp_path):
    (stored / name).write_text(text)
    with pytest.raises(SettingError, match=says):
        read_stored(stored)


def test_stored_runs_may_be_of_any_task_that_a_suite_runs(stored):
    (stored / "dqn-relu_cartpole_seed0.csv").write_text((stored / "preqn-relu_ant_seed0.csv").read_text())
    assert ("cartpole", "CartPole-v1") in [(cell.task, cell.environment) for cell in read_stored(stored)]


def test_runs_without_an_accepted_step_are_reported_too():
    rejected = alignment_report.Alignments(np.full(3, 0.5), np.full(3, np.nan), np.arange(3), np.zeros(3, bool), 0.97)
    cell = Cell("preqn-relu", "ant", "Ant-v5", (0,), ())
    assert alignment_report._row(cell, [rejected])[-4:] == ["", "1.0000", 0, "0.000000"]


def test_the_command_on_stored_runs(stored, tmp_path):
    code, output, errors = execute("alignment", f"--stored={stored}", "--out=pooled", cwd=tmp_path)
    assert code == 0, errors
    assert "| preqn-relu | ant | 1 |" in output
    assert (tmp_path / "pooled" / "pooled.csv").exists()
    code, output, errors = execute("alignment", f"--stored={stored}", "--steps=5", cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors == f"error: --steps applies to new runs and cannot be used with --stored={stored}\n"


def test_a_folder_without_stored_runs_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"--stored=.* holds no <variant>_<task>_seed<seed>\.csv"):
        read_stored(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("preqn-relu-step0.03", "step_size", 0.03),
        ("preqn-relu-step0.01", "step_size", 0.01),
        ("td3-sin-polyak0.98", "polyak", 0.98),
        ("td3-sin-polyak0.95", "polyak", 0.95),
    ],
)
def test_variants_of_the_papers_two_open_questions(name, field, value):
    config = job_of(name, 0).config()
    assert name.startswith(f"{config.agent.name}-{config.agent.activation}-")
    assert getattr(config.agent, field) == value
    assert name not in alignment_report.PAPER


def test_variants_measure_what_the_report_reads():
    config = job_of("td3-sin", 0).config()
    assert (config.agent.name, config.agent.activation) == ("td3", "sin")
    assert config.measure_alignment
    assert config.record_updates
