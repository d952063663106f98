"""The command as a person uses it, in processes of its own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.programs import assert_refused

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
# Under half a minute at the slowest, with several checkpoints and evaluations on the way.
QUICK = [
    "--config=preqn_swimmer",
    "--config.env.id=InvertedPendulum-v5",
    "--config.env.kwargs.reset_noise_scale=0.02",
    "--config.agent.hidden_sizes=16,16",
    "--config.num_seeds=2",
    "--config.total_steps=2000",
    "--config.start_steps=100",
    "--config.update_after=100",
    "--config.batch_size=32",
    "--config.replay_capacity=1500",
    "--config.evaluate_every=250",
    "--config.evaluate_episodes=2",
    "--config.checkpoint_every=500",
]


def start(module, *arguments, cwd, **variables):
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cwd)}
    environment = {**os.environ, **own, **variables}
    program = ["-m", f"experiments.{module}"] if module else ["-c", INTERRUPTED]
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def execute(module, *arguments, cwd, **variables):
    process = start(module, *arguments, cwd=cwd, **variables)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


# experiments.run, which sends itself a signal once its metrics.csv has more than some lines.
INTERRUPTED = """
import os, pathlib, runpy, sys
from preqn_jax.training.reporters import RunReporter
lines, number, report = int(sys.argv[1]), int(sys.argv[2]), RunReporter.evaluation

def report_and_signal(self, rows):
    report(self, rows)
    if pathlib.Path("run/metrics.csv").read_text().count("\\n") > lines:
        os.kill(os.getpid(), number)

RunReporter.evaluation = report_and_signal
sys.argv[1:3] = []
runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
"""


def interrupt(lines, number, cwd):
    """Runs until there are more than so many lines, then sends the signal; returns exit code and errors."""
    process = start(None, str(lines), str(int(number)), *QUICK, "--workdir=run", cwd=cwd)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def wait_for_rows(path, rows, process):
    deadline = time.monotonic() + 200
    while not (path.exists() and path.read_text().count("\n") > rows):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, errors = execute("run", *QUICK, "--workdir=run", cwd=folder)
    assert code == 0, errors
    assert "finished 2000 steps" in errors
    assert "compiled in" in errors
    assert "replay" in errors
    return folder / "run"


def test_what_a_run_leaves_behind(whole):
    table = np.genfromtxt(whole / "metrics.csv", delimiter=",", names=True)
    assert table["step"].tolist() == [step for step in range(250, 2001, 250) for _ in range(2)]
    assert table["seed"].tolist() == [0, 1] * 8
    for column in ("return_mean", "alignment", "step_size", "accepted", "q", "td_error"):
        assert np.isfinite(table[column]).all(), column
    assert (table["alignment"][table["accepted"] == 1] >= 0.97).all()
    record = json.loads((whole / "config.json").read_text())
    assert record["config"]["env"]["id"] == "InvertedPendulum-v5"
    assert record["config"]["env"]["kwargs"] == {"reset_noise_scale": 0.02}
    assert record["config"]["agent"]["hidden_sizes"] == [16, 16]
    assert {"jax", "mujoco", "gymnasium"} <= record["versions"].keys()
    assert record["command"].startswith("python -m experiments.run --config=preqn_swimmer")
    assert (whole / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").glob("events.*"))
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["1500", "2000"]


def test_a_finished_run_is_left_alone(whole):
    before = (whole / "metrics.csv").read_bytes()
    code, _, errors = execute("run", *QUICK, "--workdir=run", cwd=whole.parent)
    assert (code, (whole / "metrics.csv").read_bytes()) == (0, before)
    assert (
        "run is complete: it has 2000 steps, and config.total_steps=2000; raise --config.total_steps above 2000"
        in errors
    )


def test_asked_for_fewer_steps_a_run_says_how_many_it_has_and_keeps_its_record(whole):
    before = (whole / "config.json").read_bytes()
    code, _, errors = execute("run", *QUICK, "--config.total_steps=1000", "--workdir=run", cwd=whole.parent)
    assert (code, (whole / "config.json").read_bytes()) == (0, before)
    assert (
        "run is complete: it has 2000 steps, and config.total_steps=1000; raise --config.total_steps above 2000"
        in errors
    )


def test_killed_at_any_moment_the_run_goes_on_to_the_same_table(whole, tmp_path):
    for lines in (1, 5, 11):  # before the first checkpoint, between two, and after two
        assert interrupt(lines, signal.SIGKILL, tmp_path)[0] == -signal.SIGKILL
    code, _, errors = execute("run", *QUICK, "--workdir=run", cwd=tmp_path)
    assert code == 0, errors
    assert re.search(r"training from step (1000|1500)$", errors, re.MULTILINE)  # not from the start
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_writes_a_checkpoint_and_says_how_to_go_on(whole, tmp_path, number, code):
    returncode, errors = interrupt(3, number, tmp_path)
    assert returncode == code, errors
    assert "checkpoint written; the same command resumes from it" in errors
    (step,) = [int(word) for word in errors.split("stopped at step ")[1].split(",")[:1]]
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    returncode, _, errors = execute("run", *QUICK, "--workdir=run", cwd=tmp_path)
    assert returncode == 0, errors
    assert f"training from step {step}" in errors
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.fixture
def interrupted(whole, tmp_path):
    """A copy of the finished run that wants to go on."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "run")], check=True)
    return tmp_path / "run", [*QUICK, "--config.total_steps=2500", "--workdir=run"]


def test_a_run_can_be_made_longer(interrupted):
    folder, arguments = interrupted
    before = (folder / "metrics.csv").read_text()
    code, _, errors = execute("run", *arguments, cwd=folder.parent)
    assert code == 0, errors
    after = (folder / "metrics.csv").read_text()
    assert after.startswith(before)
    assert after.count("\n") == before.count("\n") + 4


def test_a_damaged_checkpoint_is_refused_and_nothing_is_touched(interrupted):
    folder, arguments = interrupted
    data = max((folder / "checkpoints" / "2000" / "arrays").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    before = (folder / "metrics.csv").read_bytes()
    code, _, errors = execute("run", *arguments, cwd=folder.parent)
    assert code == 1
    assert "error: checkpoint checkpoints/2000 is damaged" in errors
    assert "Traceback" not in errors
    assert (folder / "metrics.csv").read_bytes() == before


def test_a_foreign_checkpoint_is_refused(interrupted):
    folder, arguments = interrupted
    manifest = folder / "checkpoints" / "2000" / "manifest" / "metadata"
    manifest.write_text(json.dumps({"weights": 1}))
    code, _, errors = execute("run", *arguments, cwd=folder.parent)
    assert code == 1
    assert "was not written by preqn_jax" in errors
    assert "Traceback" not in errors


def test_rollout_evaluates_and_films_where_mujoco_can_draw(whole):
    code, output, errors = execute("rollout", "--workdir=run", "--episodes=2", cwd=whole.parent)
    assert code == 0, errors
    assert "checkpoint of step 2000" in output
    assert output.count("seed ") == 2
    if mujoco_can_draw():
        assert re.search(r"video of \d+ frames: run/rollout.mp4", output), errors
        assert (whole / "rollout.mp4").stat().st_size > 1000
    else:
        assert "no video: rendering failed" in errors


def test_a_video_that_was_asked_for_and_cannot_be_made_is_a_failure(whole):
    (whole.parent / "taken.gif").mkdir()
    arguments = ["--workdir=run", "--episodes=1", "--video=taken.gif"]
    code, output, errors = execute("rollout", *arguments, cwd=whole.parent)
    assert (code, output.count("seed ")) == (1, 2)
    assert "no video: " in errors


def mujoco_can_draw():
    program = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"
    drawn = subprocess.run([sys.executable, "-c", program], env={**os.environ, "MUJOCO_GL": "egl"}, capture_output=True)
    return drawn.returncode == 0


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("run", ["--config=preqn_aunt"], "did you mean preqn_ant"),
        ("run", ["--config.agent.min_alignement=0.9"], "did you mean --config.agent.min_alignment?"),
        ("run", ["--config.agent.eta=0.9"], "--config.agent.eta has been renamed; use --config.agent.min_alignment"),
        (
            "run",
            ["--config.agent.min_alignment=1.5"],
            "config.agent.min_alignment=1.5 is out of range; allowed: (0, 1]",
        ),
        ("run", ["--config.total_steps=many"], "config.total_steps=many is not a whole number"),
        ("run", ["--config.env.id=Aunt-v5"], "did you mean Ant-v5"),
        ("run", ["--config.env.kwarg.frame_skip=3"], "did you mean --config.env.kwargs?"),
        ("run", ["--config.env.kwargs.frame_skp=3"], "unexpected keyword argument 'frame_skp'"),
        ("run", ["--config.replay_capacity=1000000000000"], "GiB of memory are available"),
        ("run", ["--wordkir=x"], "did you mean --workdir?"),
        ("run", ["preqn_ant"], "unexpected argument 'preqn_ant'"),
        ("run", ["--workdir=occupied"], "exists and holds no run"),
        ("run", ["--workdir=occupied/thesis.tex/run"], "run cannot be written: Not a directory"),
        ("rollout", [], "--workdir is missing"),
        ("rollout", ["--workdir=nowhere"], "holds no run"),
        ("rollout", ["--workdir=nowhere", "--video=nowhere/film.mp4"], "the directory nowhere does not exist"),
    ],
)
def test_a_mistake_ends_with_one_line_and_exit_code_2(tmp_path, module, arguments, says):
    assert_refused(module, arguments, says, tmp_path)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "nonsense"])
def test_a_platform_that_jax_does_not_have_is_refused_in_one_line(tmp_path, platform):
    code, _, errors = execute("run", "--workdir=run", cwd=tmp_path, JAX_PLATFORMS=platform)
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"error: JAX_PLATFORMS={platform} cannot be used")
    assert line.endswith("allowed: cpu, or the platform of an accelerator that JAX finds here")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ("OSError(28, 'No space left on device', 'summary.csv')", 1,
         "error: No space left on device: summary.csv cannot be written"),
        ("NonFiniteError('X-v0 gave a reward of nan')", 1, "error: X-v0 gave a reward of nan"),
        ("KeyboardInterrupt", 130, "interrupted"),
    ],
)  # fmt: skip
def test_a_program_that_cannot_continue_says_so_in_one_line(error, code, says, tmp_path):
    program = f"""
from preqn_jax.cli import command_line
from preqn_jax.types import NonFiniteError
def main():
    raise {error}
command_line.run(main)
"""
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (code, f"{says}\n")


def test_another_configuration_does_not_take_over_a_work_folder(whole):
    code, _, errors = execute("run", *QUICK, "--config.agent.min_alignment=0.9", "--workdir=run", cwd=whole.parent)
    assert code == 2
    assert "config.agent.min_alignment=0.97, not 0.9" in errors


def test_helpfull_lists_the_fields_with_units_and_defaults(tmp_path):
    _, output, errors = execute("run", "--helpfull", cwd=tmp_path)
    text = " ".join((output + errors).split())
    assert (
        "--config.agent.min_alignment: minimum cos(Q' - Q, delta) for a critic step to be accepted, eta in the paper"
        in text
    )
    assert "(default: '0.97')" in text
    assert "[environment steps per seed]" in text
