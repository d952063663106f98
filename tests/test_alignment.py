"""The report of experiments.alignment, on runs made up by hand."""

import csv
import shutil

import numpy as np
import pytest

from experiments import alignment_report
from experiments.loggers import UpdatesRecord
from experiments.suite import Job
from preqn_jax.settings import SettingError

STEPS = 4000
# cos of the first half of the updates and of the second, and whether the second was accepted.
RUNS = {"preqn-sin": (0.99, 0.5, False), "td3-relu": (0.2, 0.4, None)}


def make_run(folder, job, first, second, accepted):
    work = folder / job.name
    work.mkdir()
    rows = "".join(f"{step},{job.seed},{step / 100}\n" for step in range(1000, STEPS + 1, 1000))
    (work / "metrics.csv").write_text("step,seed,return_mean\n" + rows)
    record = UpdatesRecord(work / "updates", first_step=0)
    for step, value in ((STEPS // 2, first), (STEPS, second)):
        info = {"update_alignment": np.full((1, STEPS // 2), value)}
        if accepted is not None:
            info["accepted"] = np.full((1, STEPS // 2), step < STEPS or accepted)
        record.add(step, info)
        record.write()


@pytest.fixture
def jobs(tmp_path):
    jobs = [Job(alignment_report.VARIANTS[name], "hopper", seed, STEPS) for name in RUNS for seed in (0, 1)]
    for job in jobs:
        make_run(tmp_path, job, *RUNS[job.variant.name])
    return jobs


def test_every_update_counts_and_refused_steps_stand_apart(jobs, tmp_path):
    text = alignment_report.write(jobs, tmp_path)
    assert "| preqn-sin | hopper | 2 | 8000 | 0.7450 | 0.990000 | 0.5000 | 0 | 0.500000 |" in text
    assert "| td3-relu | hopper | 2 | 8000 | 0.3000 | 0.200000 | 1.0000 | 8000 | 1.000000 |" in text
    with (tmp_path / "alignment.csv").open() as file:
        assert [row["lowest_accepted"] for row in csv.DictReader(file)] == ["0.990000", "0.200000"]
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


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
    variant = alignment_report.VARIANTS["preqn-sin"]
    job = Job(variant._replace(overrides=(*variant.overrides, "agent.eta=0.995")), "hopper", 0, STEPS)
    make_run(tmp_path, job, *RUNS["preqn-sin"])
    assert "| preqn-sin | hopper | 1 | 4000 | 0.7450 | 0.990000 | 1.0000 | 2000 | 0.500000 |" in alignment_report.write(
        [job], tmp_path
    )


def test_variants_measure_what_the_report_reads():
    config = Job(alignment_report.VARIANTS["td3-sin"], "hopper", 0, STEPS).config()
    assert (config.algorithm, config.agent.activation) == ("td3", "sin")
    assert config.measure_alignment
    assert config.record_updates
