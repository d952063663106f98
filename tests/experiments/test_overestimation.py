"""The report on what critics claim and what comes, on runs made up by hand."""

import csv

from experiments.suites import overestimation, report
from experiments.suites.suite import Job, Variant

SHORT = ("update_after=50",)
COLUMNS = "step,seed,return_mean,first_q,discounted_return,action_abs"


def make_run(folder, job, rows, columns=COLUMNS):
    work = folder / job.name
    work.mkdir()
    (work / "metrics.csv").write_text("\n".join([columns, *rows, ""]))


def test_claims_stand_beside_what_came(tmp_path):
    jobs = [Job(Variant("high", "preqn", SHORT), "hopper", seed, 4000) for seed in (0, 1)]
    for job in jobs:
        claims = (500, 300, 200, 100 + 200 * job.seed)
        rows = [f"{1000 * (i + 1)},{job.seed},{10 * i},{claim},{i},0.5" for i, claim in enumerate(claims)]
        make_run(tmp_path, job, rows)
    text = overestimation.write(report.collect(jobs, tmp_path), tmp_path)
    assert "| high | hopper | 2 | 4000 | 20 | 500 | 233.3 | 2 | 0.5 | 500 | 1000 |" in text
    with (tmp_path / "overestimation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["largest_q"], row["q"], row["discounted_return"]) == ("500", "233.3", "2")
    assert (tmp_path / "overestimation.png").read_bytes().startswith(b"\x89PNG")


def test_when_the_excess_was_largest(tmp_path):
    """Not where Q is: it may be right there."""
    job = Job(Variant("high", "preqn", SHORT), "hopper", 0, 3000)
    make_run(tmp_path, job, ["1000,0,10,50,40,0.5", "2000,0,10,90,20,0.5", "3000,0,10,100,95,0.5"])
    overestimation.write(report.collect([job], tmp_path), tmp_path)
    with (tmp_path / "overestimation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["largest_q"], row["largest_excess"], row["at_step"]) == ("100", "70", "2000")


def test_runs_that_did_not_measure_it_are_left_out(tmp_path):
    job = Job(Variant("old", "preqn", SHORT), "hopper", 0, 1000)
    make_run(tmp_path, job, ["1000,0,10"], columns="step,seed,return_mean")
    assert overestimation.write(report.collect([job], tmp_path), tmp_path) == ""
    assert not (tmp_path / "overestimation.csv").exists()
