"""Sweeps as a person starts them, in processes of their own, and what is left of them when one is killed."""

import csv
import importlib.util
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest

import preqn_jax
from preqn_jax.cli import processes
from preqn_jax.settings import SettingError
from tests.cli.test_run import ROOT, wait_for_rows
from tests.programs import execute

pytestmark = pytest.mark.slow

pytest.importorskip("brax")

# Brax's cheapest environment. Long enough to be killed in the middle.
SWEEP = [
    "--config=preqn_ant",
    "--config.env.backend=brax",
    "--config.env.id=fast",
    "--config.env.time_limit=20",
    "--config.env.num_envs=2",
    "--config.agent.hidden_sizes=16,16",
    "--config.total_steps=2000",
    "--config.start_steps=100",
    "--config.update_after=100",
    "--config.batch_size=16",
    "--config.replay_capacity=1000",
    "--config.evaluate_every=100",
    "--config.evaluate_episodes=2",
    "--config.checkpoint_every=200",
    "--grid=agent.step_size=0.03,0.1",
    "--num-seeds=2",
    "--members-per-chunk=4",
]


# 24 members with replay buffers, of 28 bytes a transition, of an eighth of the memory each, whoever else takes of it.
MANY = [
    f"--config.replay_capacity={psutil.virtual_memory().available // (8 * 28) // 1000 * 1000}",
    "--num-seeds=12",
    "--members-per-chunk=1",
    "--workers=24",
    "--cluster=none",
]
HOST = [
    "--config.env.backend=gymnasium",
    "--config.env.id=Hopper-v5",
    "--config.env.num_envs=1",
    "--config.env.time_limit=0",
]


# For each process of a population, where every other test has eight devices.
ONE_DEVICE = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"}


def start(*flags, cwd):
    environment = {**os.environ, **ONE_DEVICE, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.sweep", *SWEEP, *flags]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    output = finish(start("--cluster=none", "--out=out", cwd=folder))
    assert "| 0.03 | 2 |" in output
    return folder / "out"


def test_the_report(whole):
    (unit,) = whole.glob("chunk*/metrics.csv")
    rows = list(csv.DictReader(unit.open()))
    assert len(rows) == 20 * 4
    assert [(row["run"], row["seed"]) for row in rows[:4]] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    summary = list(csv.DictReader((whole / "summary.csv").open()))
    assert [(row["agent.step_size"], row["seeds"]) for row in summary] == [("0.03", "2"), ("0.1", "2")]
    assert (whole / "sweep.png").stat().st_size > 5000


def test_every_member_of_a_chunk_has_its_own_policy(whole):
    policies = [preqn_jax.load_policy(whole / "chunk0000", member=member) for member in range(4)]
    observation = np.ones(policies[0].observation_space.shape)
    assert len({tuple(policy(observation)) for policy in policies}) == 4
    for choice in ({}, {"member": 4}, {"member": -1}, {"seed": 0}):
        with pytest.raises(SettingError, match="is a chunk of a sweep; allowed: member=0 to member=3, for its runs in"):
            preqn_jax.load_policy(whole / "chunk0000", **choice)


def read(path):
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(path.open())]


def kill_one(process, metrics, wanted):
    """Kills the process that trains, once there are some rows; returns how many there were."""
    wait_for_rows(metrics, 32, process)
    (victim,) = [child for child in psutil.Process(process.pid).children(recursive=True) if wanted(child)]
    victim.kill()
    return metrics.read_text().count("\n")


def test_a_killed_process_costs_only_the_steps_since_its_checkpoint(whole, tmp_path):
    process = start("--cluster=none", "--out=out", cwd=tmp_path)
    metrics = tmp_path / "out" / "chunk0000" / "metrics.csv"
    before = kill_one(process, metrics, lambda child: "preqn_jax.cli.sweeps.unit" in child.cmdline())
    assert before < 80
    finish(process)
    assert metrics.read_bytes() == (whole / "chunk0000" / "metrics.csv").read_bytes()
    log = (tmp_path / "out" / "chunk0000.log").read_text()
    assert "training from step 0" in log
    assert log.count("training from step") == 2
    assert int(log.rpartition("training from step ")[2].split()[0]) > 0


NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@NEEDS_RAY
def test_a_killed_worker_of_a_cluster_costs_only_the_steps_since_its_checkpoint(whole, tmp_path):
    process = start("--cluster=local", "--workers=1", "--out=out", cwd=tmp_path)
    metrics = tmp_path / "out" / "chunk0000" / "metrics.csv"
    kill_one(process, metrics, lambda child: child.name().startswith("ray::_run"))
    finish(process)
    assert metrics.read_bytes() == (whole / "chunk0000" / "metrics.csv").read_bytes()
    assert (tmp_path / "out" / "chunk0000.log").read_text().count("training from step") == 2


def start_together(folder):
    """Two processes that train one population, and where each writes its metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = [f"--coordinator=127.0.0.1:{port}", "--num-processes=2", "--out=out"]
    processes = [start(*together, f"--process-id={number}", cwd=folder) for number in (0, 1)]
    return processes, [folder / "out" / "chunk0000" / f"process{number}" / "metrics.csv" for number in (0, 1)]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Metrics of two processes that nothing interrupted."""
    processes, metrics = start_together(tmp_path_factory.mktemp("together"))
    outputs = [finish(process) for process in processes]
    assert "| 0.03 | 2 |" in outputs[0]
    assert "|" not in outputs[1]  # one report is enough
    return metrics


def test_two_processes_train_one_population(whole, together):
    alone = read(whole / "chunk0000" / "metrics.csv")
    for number, path in enumerate(together):
        rows = read(path)
        expected = [row for row in alone if row["run"] // 2 == number]
        assert len(rows) == len(expected) == 40
        # Before differences of rounding decide whether a step passes.
        for ours, theirs in zip(rows[:6], expected[:6], strict=True):
            assert list(ours) == list(theirs)
            for name in ours:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_killed_one_of_two_processes_costs_only_the_steps_since_their_checkpoint(together, tmp_path):
    processes, metrics = start_together(tmp_path)
    wait_for_rows(metrics[1], 16, processes[1])
    processes[1].kill()
    processes[0].kill()  # it would wait for the other; a person starts both again
    for process in processes:
        process.communicate(timeout=100)
    assert metrics[1].read_text().count("\n") < 40
    processes, _ = start_together(tmp_path)
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert int(errors.rpartition("training from step ")[2].split()[0]) > 0
    assert [path.read_bytes() for path in metrics] == [path.read_bytes() for path in together]


def test_a_sweep_stops_at_a_signal_and_goes_on(whole, tmp_path):
    process = start("--cluster=none", "--out=out", cwd=tmp_path)
    metrics = tmp_path / "out" / "chunk0000" / "metrics.csv"
    wait_for_rows(metrics, 32, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "the same command resumes" in errors
    finish(start("--cluster=none", "--out=out", cwd=tmp_path))
    assert metrics.read_bytes() == (whole / "chunk0000" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-processes=2"], "--num-processes and --process-id need --coordinator"),
        (["--coordinator=localhost:1", "--process-id=1"], "--process-id=1 must be below --num-processes=1"),
        (["--coordinator=localhost"], "--coordinator=localhost must be host:port of process 0"),
        (["--coordinator=localhost:1", "--cluster=auto"], "exclude each other"),
        (["--cluster=here"], "--cluster=here is unknown; allowed: local, auto, ray://host:port, none"),
        (MANY, "for 24 replay buffer(s), but"),
        (["--coordinator=localhost:1", *HOST], "but config.env.backend=gymnasium runs on the CPU"),
        (["--config.num_seeds=2"], "has no effect on a sweep, whose runs have one seed each; use --num-seeds=2"),
        (["--grid=agent.min_alignement=1"], "did you mean agent.min_alignment?"),
        (["--config.env.id=nowhere"], "config.env.id=nowhere is unknown; did you mean"),
        (["--config.env.backend=mjs"], "config.env.backend=mjs is unknown; did you mean mjx?"),
    ],
)
def test_bad_input_ends_with_one_line(flags, message, tmp_path):
    code, _, errors = execute("sweep", *SWEEP, *flags, "--out=out", cwd=tmp_path, **ONE_DEVICE)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in errors


def test_a_sweep_is_refused_before_it_compiles_while_another_one_uses_its_directory(tmp_path):
    pytest.importorskip("fcntl")
    with processes.claim(tmp_path / "out", "sweep", {}):
        for flags in (HOST, ["--coordinator=localhost:1"]):
            code, _, errors = execute("sweep", *SWEEP, *flags, "--out=out", cwd=tmp_path, **ONE_DEVICE)
            assert code == 2
            assert errors == "error: --out=out is in use by another sweep; wait for it, or choose another\n"
    assert not list((tmp_path / "out").glob("*/"))


# experiments.sweep, where Ray's client gives up at once instead of after half a minute.
IMPATIENT = """
import runpy
from ray.util.client import worker
worker.INITIAL_TIMEOUT_SEC, worker.backoff = 0.1, lambda timeout: timeout
runpy.run_module("experiments.sweep", run_name="__main__", alter_sys=True)
"""


@NEEDS_RAY
def test_a_cluster_that_cannot_be_reached_ends_with_one_line(tmp_path):
    command = [sys.executable, "-c", IMPATIENT, *SWEEP, "--cluster=ray://nowhere.invalid:1", "--out=out"]
    environment = {**os.environ, **ONE_DEVICE, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert "the cluster cannot be reached (ray client connection timeout" in line
    assert "Traceback" not in ended.stderr
