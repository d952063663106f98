"""Suites of runs, with quick stand-ins for the runs themselves."""

import csv
import json
import os
import re
import signal
import sys

import numpy as np
import pytest

from experiments.suites import report, suite
from experiments.suites.suite import Job, Variant
from preqn_jax.cli import lists, processes
from preqn_jax.cli.processes import Runner
from preqn_jax.settings import SettingError
from preqn_jax.training import workdir

# Reports evaluations as a run does; fails as often as the file named "failures" in the folder says.
STAND_IN = """
import pathlib, sys, time
folder, name, steps, seed, level = pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
failures = folder / f"{name}.failures"
left = int(failures.read_text()) if failures.exists() else 0
if left:
    failures.write_text(str(left - 1))
    sys.exit("error: it broke")
(folder / name).mkdir(exist_ok=True)
rows = [f"{step},{seed},{level + step / 100}" for step in range(100, steps + 1, 100)]
(folder / name / "metrics.csv").write_text("step,seed")  # half of it, for a moment
time.sleep(0.1)
(folder / name / "metrics.csv").write_text("step,seed,return_mean\\n" + "\\n".join(rows) + "\\n")
"""
LEVELS = {"a": 10, "b": 1000}
A = Variant("a", "preqn", ("update_after=50",))  # the runs are short
B = Variant("b", "preqn", (*A.overrides, "agent.min_alignment=0.9"))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def command(job, folder):
        level = LEVELS[job.variant.name] + job.seed
        return [sys.executable, "-c", STAND_IN, str(folder), job.name, str(job.steps), str(job.seed), str(level)]

    monkeypatch.setattr(Job, "command", command)
    monkeypatch.setattr(Runner, "poll_seconds", 0.02)


def jobs_of(steps=500, seeds=(0, 1, 2), tasks=("swimmer", "hopper")):
    return [Job(variant, task, seed, steps) for seed in seeds for task in tasks for variant in (A, B)]


def test_a_job_is_one_run_of_the_command_line():
    command = Job(B, "hopper", 3, 10_000)
    assert command.name == "b_hopper_seed3"
    config = command.config()
    assert (config.env.id, config.seed, config.total_steps, config.agent.min_alignment) == ("Hopper-v5", 3, 10_000, 0.9)


def test_an_impossible_override_is_refused_before_anything_runs():
    with pytest.raises(SettingError, match=r"agent\.min_alignment"):
        Job(Variant("x", "preqn", ("agent.eat=0.9",)), "hopper", 0, 1000).config()
    with pytest.raises(SettingError, match="out of range"):
        Job(Variant("x", "preqn", ("agent.min_alignment=1.9",)), "hopper", 0, 1000).config()
    for reserved in ("env.id=Ant-v4", "seed=1", "num_seeds=2", "total_steps=50", "algorithm=td3"):
        with pytest.raises(SettingError, match=reserved.partition("=")[0]):
            Job(Variant("x", "preqn", (reserved,)), "hopper", 0, 1000).config()


def test_all_jobs_run_once_and_longer_ones_go_on(tmp_path, capsys):
    assert Runner(jobs_of(), tmp_path, workers=2).run() == 0
    written = {job.name: (tmp_path / job.name / "metrics.csv").stat().st_mtime_ns for job in jobs_of()}
    capsys.readouterr()
    assert Runner(jobs_of(), tmp_path, workers=2).run() == 0
    assert "12 of 12 runs are complete, 0 remain" in capsys.readouterr().err
    assert written == {job.name: (tmp_path / job.name / "metrics.csv").stat().st_mtime_ns for job in jobs_of()}
    assert Runner(jobs_of(steps=600), tmp_path, workers=2).run() == 0
    assert processes.steps_done(jobs_of(steps=600)[0], tmp_path) == 600


def test_a_shorter_suite_is_reported_up_to_its_last_step_which_must_have_been_evaluated(tmp_path):
    assert Runner(jobs_of(seeds=(0,)), tmp_path, workers=2).run() == 0
    cells = report.collect(jobs_of(seeds=(0,), steps=300), tmp_path)
    assert {cell.steps[-1] for cell in cells} == {300}
    says = r"metrics.csv has no evaluation of step 250 to report on; choose one of its steps: 100, 200, 300, 400, 500"
    with pytest.raises(SettingError, match=says):
        Runner(jobs_of(seeds=(0,), steps=250), tmp_path, workers=2)


def test_every_process_has_a_core_of_its_own_while_there_are_enough(tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 7}, raising=False)  # whatever this machine has
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append((pid, cores)), raising=False)
    runner = Runner(jobs_of(seeds=(0,)), tmp_path, workers=3)
    assert runner.run() == 0
    pids, cores = zip(*pinned, strict=True)
    assert len(set(pids)) == 4
    assert os.getpid() not in pids
    assert cores[:3] == ({3}, {7}, {3})  # the third shares; the fourth has that of the first that ended
    assert cores[3] in ({3}, {7})


def test_processes_that_are_not_to_be_pinned_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pytest.fail("pinned"), raising=False)
    assert Runner(jobs_of(seeds=(0,), tasks=("hopper",)), tmp_path, workers=2, pin=False).run() == 0


def test_a_failed_job_is_tried_once_more_and_the_rest_goes_on(tmp_path, capsys):
    jobs = jobs_of(seeds=(0,))
    (tmp_path / f"{jobs[0].name}.failures").write_text("1")
    (tmp_path / f"{jobs[1].name}.failures").write_text("2")
    runner = Runner(jobs, tmp_path, workers=2)
    assert runner.run() == 1
    assert runner.failed == {jobs[1].name: "error: it broke"}
    assert [processes.steps_done(job, tmp_path) for job in jobs] == [500, 0, 500, 500]
    assert "it will be retried once" in capsys.readouterr().err


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path, monkeypatch):
    first, *_ = jobs = jobs_of()
    stop = "import os, signal; os.kill(os.getppid(), signal.SIGTERM)"  # comes when the first job runs

    def command(job, folder):
        end = f"import time; time.sleep(60); open({str(folder / 'ended')!r}, 'w')"
        return [sys.executable, "-c", f"{stop}; {end}" if job == first else end]

    monkeypatch.setattr(Job, "command", command)
    runner = Runner(jobs, tmp_path, workers=2)
    assert runner.run() == 128 + signal.SIGTERM
    assert not (tmp_path / "ended").exists()
    assert len(list(tmp_path.glob("*.log"))) <= 2
    assert not runner.failed


def test_a_folder_belongs_to_one_kind_of_suite(tmp_path):
    processes.claim(tmp_path / "out", "benchmark", {"steps": 1})
    processes.claim(tmp_path / "out", "benchmark", {"steps": 2})
    assert json.loads((tmp_path / "out" / "suite.json").read_text())["options"] == {"steps": 2}
    with pytest.raises(SettingError, match=r"another suite \(benchmark, not ablation\)"):
        processes.claim(tmp_path / "out", "ablation", {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(SettingError, match="is not the directory of a suite"):
        processes.claim(tmp_path / "mine", "benchmark", {})


def test_a_folder_is_one_suite_s_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    assert processes.lock_existing(out, "benchmark") is None  # there is none yet, and nothing is written
    assert not out.exists()
    first = processes.claim(out, "benchmark", {"set": []})
    before = (out / "suite.json").read_bytes()
    message = re.escape(f"--out={out} is in use by another benchmark; wait for it, or choose another")
    with pytest.raises(SettingError, match=message):
        processes.lock_existing(out, "benchmark")
    with pytest.raises(SettingError, match=message):
        processes.claim(out, "benchmark", {"set": ["a=1"]})
    assert (out / "suite.json").read_bytes() == before
    first.close()
    with processes.lock_existing(out, "benchmark"):
        pass


def test_a_directory_that_holds_something_else_is_not_locked(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert processes.lock_existing(tmp_path, "benchmark") is None
    with pytest.raises(SettingError, match="exists and is not the directory of a suite"):
        processes.claim(tmp_path, "benchmark", {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_of_other_settings_is_no_result_of_this_suite(tmp_path):
    job = Job(A, "hopper", 0, 500)
    workdir.claim(tmp_path / job.name, job.config()).close()
    suite.check_jobs([job, Job(A, "hopper", 1, 500)], tmp_path)
    suite.check_jobs([job._replace(steps=1000)], tmp_path)  # longer is fine
    with pytest.raises(SettingError, match=r"config\.agent\.min_alignment=0\.97, not 0\.9; choose another --out"):
        suite.check_jobs([job._replace(variant=B._replace(name="a"))], tmp_path)
    (tmp_path / job.name / "config.json").unlink()
    (tmp_path / job.name / "metrics.csv").write_text("")
    with pytest.raises(SettingError, match=r"has metrics, but no config\.json"):
        suite.check_jobs([job], tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\n",
        b"step,seed,return_mean\n100,0,1.5\n200,0",
        b"step,seed,return_mean\n100,0,1\n2",
        b"seed,return_mean\n0,1.5\n",
        b"step,seed\n100,0\n",
        b"\xff\xfe\n",
    ],
)
def test_a_half_written_result_is_named_and_nothing_starts(tmp_path, damage):
    job = jobs_of()[0]
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "metrics.csv").write_bytes(damage)
    with pytest.raises(SettingError, match=r"metrics\.csv is damaged"):
        Runner([job], tmp_path, workers=1)


def test_the_report_says_what_was_measured(tmp_path):
    assert Runner(jobs_of(), tmp_path, workers=2).run() == 0
    jobs = [*jobs_of(), Job(A, "ant", 0, 500)]
    cells = report.collect(jobs, tmp_path)
    text = report.write(cells, tmp_path, "Title", report.origin(cells, len(jobs), tmp_path))
    assert "12 of 13 runs finished, made with: " in text
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "algo,task,version,seeds,steps,final_mean,final_low,final_high,max_mean"
    by_name = {(row["algo"], row["task"]): row for row in rows}
    hopper = by_name["b", "hopper"]
    assert (hopper["version"], hopper["seeds"], hopper["steps"]) == ("v5", "3", "500")
    # Levels 1000, 1001, 1002; the last three evaluations add 3, 4, 5, the largest 5.
    assert float(hopper["final_mean"]) == pytest.approx(1005.0)
    assert float(hopper["max_mean"]) == pytest.approx(1006.0)
    assert 1004 <= float(hopper["final_low"]) < 1005 < float(hopper["final_high"]) <= 1006
    raw = np.load(tmp_path / "returns.npz", allow_pickle=False)
    assert raw["returns"].shape == (2, 2, 3, 5)
    np.testing.assert_array_equal(raw["returns"][1, 0, 2], 1002 + np.arange(1, 6))
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| a than b | 0.00 [0.00, 0.00] |" in text


def test_the_array_of_returns_has_each_value_at_its_step():
    def cell(task, steps, returns):
        rows = list(zip(steps, returns, strict=True))
        table = np.array(rows, dtype=[("step", float), ("return_mean", float)])
        return report.Cell("a", task, f"{task}-v5", (0,), (table,))

    raw = report._raw([cell("hopper", (100, 200), (1.0, 2.0)), cell("ant", (200, 300), (7.0, 8.0))])
    assert raw["steps"].tolist() == [100, 200, 300]
    np.testing.assert_array_equal(raw["returns"][0, :, 0], [[1.0, 2.0, np.nan], [np.nan, 7.0, 8.0]])


@pytest.mark.parametrize("given", [[], ["nope"], ["hopper", "hopper"]])
def test_names_are_checked(given):
    with pytest.raises(SettingError, match="--envs"):
        lists.check_names("--envs", given, ["hopper", "swimmer"])


@pytest.mark.parametrize("given", [[], ["x"], ["-1"], ["1", "1"], ["0.5"]])
def test_seeds_are_checked(given):
    with pytest.raises(SettingError, match="--seeds"):
        lists.parse_seeds(given)
    assert lists.parse_seeds(["0", "7"]) == (0, 7)


def test_seeds_are_named_or_counted():
    assert lists.choose_seeds(None, None, (0, 1)) == (0, 1)
    assert lists.choose_seeds(["3", "5"], None, (0, 1)) == (3, 5)
    assert lists.choose_seeds(None, 3, (0, 1), first=4) == (4, 5, 6)
    with pytest.raises(SettingError, match="--seeds and --num-seeds exclude each other"):
        lists.choose_seeds(["3"], 3, (0, 1))
