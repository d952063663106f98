import subprocess
import sys
import types

import pytest

from preqn_jax.training import provenance


@pytest.mark.parametrize(
    ("arguments", "module", "expected"),
    [
        (["/a/experiments/run.py", "--config=preqn_ant"], "experiments.run", "python -m experiments.run"),
        (["preqn_jax.cli.train", "--config=preqn_ant"], None, "preqn_jax train"),
        (["my_project/train_all.py", "--config=preqn_ant"], None, "python my_project/train_all.py"),
        (["/usr/bin/mine", "--config=preqn_ant"], None, "mine"),
        (["/a/mine/__main__.py", "--config=preqn_ant"], "mine.__main__", "python -m mine"),
    ],
)
def test_the_recorded_command_can_be_run(arguments, module, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    spec = module and types.SimpleNamespace(name=module)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert provenance.command() == f"{expected} --config=preqn_ant"


def test_a_worker_of_a_cluster_records_the_command_of_the_sweep(monkeypatch):
    monkeypatch.setenv(provenance.COMMAND, "preqn_jax sweep --grid=agent.step_size=0.03,0.1")
    assert provenance.command() == "preqn_jax sweep --grid=agent.step_size=0.03,0.1"


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_this_library_and_not_of_a_project_that_has_it_installed(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=first")
    package = tmp_path / "preqn_jax" / "training"
    installed = tmp_path / ".venv" / "site-packages" / "preqn_jax" / "training"
    for folder in (package, installed):
        folder.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert provenance.commit() == git(tmp_path, "rev-parse", "--short", "HEAD")
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.commit() == "unknown"
