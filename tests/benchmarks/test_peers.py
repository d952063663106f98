"""The comparison with SBX, reported for a stand-in whose steps take a known time."""

import json
import os

import pytest

from benchmarks import machine
from preqn_jax.settings import SettingError
from tests.programs import execute

SMALL = ["--ours=td3", "--steps=50", "--repeats=2", "--batch-size=4", "--env=InvertedPendulum-v5"]

STAND_IN = """
import json, time

class Algorithm:
    def __init__(self, policy, env, **options):
        self._made = {"name": type(self).__name__, "env": env, **options}

    def learn(self, steps, log_interval, reset_num_timesteps):
        assert log_interval is None and not reset_num_timesteps
        with open("calls.jsonl", "a") as file:
            file.write(json.dumps({**self._made, "steps": steps}) + "\\n")
        time.sleep(self.seconds * steps)

class SAC(Algorithm):
    seconds = 0.002

class CrossQ(Algorithm):
    seconds = 0.02
"""


@pytest.mark.slow
def test_peers_are_measured_in_turns_with_ours_and_saved(tmp_path):
    (tmp_path / "sbx.py").write_text(STAND_IN)
    arguments = [*SMALL, "--peers=sac,crossq", "--peer-update-every=1,25", "--out=results/peers.json"]
    code, output, errors = execute("benchmarks.peers", *arguments, cwd=tmp_path)
    assert code == 0, errors
    names = [
        "td3",
        *(f"SBX {name}, updates every {every}" for name in ("SAC", "CrossQ") for every in ("step", "25 steps")),
    ]
    record = json.loads((tmp_path / "results" / "peers.json").read_text())
    (section,) = record["sections"]
    assert list(section["timings"]) == names
    assert section["timings"]["SBX SAC, updates every step"]["ms"] >= 2
    of_peer = section["relative"]["SBX SAC, updates every step"]
    assert of_peer["SBX CrossQ, updates every step"]["clock"] > 2  # 10 on an idle machine
    assert set(section["relative"]) == {"td3", "SBX SAC, updates every step"}
    assert record["threads"]["cores allowed"] == 1
    assert record["command"].startswith("python -m benchmarks.peers")
    page = (tmp_path / "results" / "peers.md").read_text().splitlines()
    assert page[0].startswith("|  | ms per step | processor ms | relative to td3 | relative to SBX SAC")
    assert [line.split("|")[1].strip() for line in page[2:]] == names
    for name in names:
        assert name in output

    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(calls) == 4 * (2 + 2)  # two to compile, two rounds
    timed = [(call["name"], call["train_freq"]) for call in calls[-8:]]
    rows = [(name, every) for name in ("SAC", "CrossQ") for every in (1, 25)]
    assert sorted(timed[:4]) == sorted(timed[4:]) == sorted(rows)
    assert all(call["gradient_steps"] == call["train_freq"] and call["batch_size"] == 4 for call in calls)
    assert {call["name"] for call in calls if "policy_kwargs" in call} == {"SAC"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--peers=sac",
            "SBX is missing (no such package); make .venv-examples/installed installs it",
        ),
        ("--peers=ddpq", "did you mean ddpg?"),
        ("--ours=ppo", "--ours=ppo is unknown"),
        ("--steps=60", "--steps=60 must be a multiple of 50; nearest: 50"),
        ("--peer-update-every=0", "--peer-update-every=0 must be distinct numbers of at least 1, for example 1,50"),
        ("--core=4096", "--core=4096 is not available; allowed: "),
        ("--out=occupied", "--out=occupied cannot be written"),
    ],
)
def test_bad_input_ends_with_one_line(argument, message, tmp_path):
    (tmp_path / "sbx.py").write_text("raise ImportError('no such package')")
    (tmp_path / "occupied").mkdir()
    code, _, errors = execute("benchmarks.peers", argument, cwd=tmp_path)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1


def test_one_core_and_one_thread(monkeypatch):
    taken = []
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_gpu_autotune_level=0"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: taken.append(cores), raising=False)
    with pytest.raises(SettingError, match="--core=3 is not available; allowed: 2, 5"):
        machine.use_one_core(3)
    assert not taken
    machine.use_one_core(None)
    machine.use_one_core(2)
    assert taken == [{5}, {2}]
    assert os.environ["XLA_FLAGS"].startswith("--xla_gpu_autotune_level=0 --xla_cpu_multi_thread_eigen=false")
    assert os.environ["OMP_NUM_THREADS"] == "1"
