"""Programs as a person starts them, where what they compile matters more than its speed."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def execute(module, *arguments, cwd):
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes most of the time
    environment = {**os.environ, **quick, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    name = module if "." in module else f"experiments.{module}"
    command = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def assert_refused(module, arguments, says, folder):
    """One line, exit code 2, and nothing written beside what somebody else has there."""
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.tex").write_text("precious")
    code, _, errors = execute(module, *arguments, cwd=folder)
    assert code == 2
    assert says in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert [path.name for path in folder.iterdir()] == ["occupied"]
