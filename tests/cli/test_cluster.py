"""Units on a Ray of this machine's own."""

import os
import re
import subprocess
import sys

import pytest

from preqn_jax.cli.sweeps import cluster
from preqn_jax.cli.sweeps.plan import Unit
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from tests.programs import ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("ray")


def test_a_unit_that_fails_is_tried_once_more_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    def attempt(folder, name):  # in a worker, which takes it as it stands here
        import pathlib

        with (pathlib.Path(folder) / name).open("a+") as file:
            file.write("x")
            file.seek(0)
            attempts = len(file.read())
        if name == "always" or (name == "once" and attempts == 1):
            raise ValueError(f"attempt {attempts} broke" if name == "once" else "")

    monkeypatch.setattr(cluster, "_run", attempt)
    units = [Unit(name, presets.get_config("preqn_hopper"), (), None) for name in ("always", "once", "never")]
    code, failed = cluster.run(units, tmp_path, "local", workers=1)
    assert code == 1
    assert failed == {"always": "ValueError"}  # without a message
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"always": "xx", "once": "xx", "never": "x"}
    errors = capsys.readouterr().err
    assert "once failed (attempt 1 broke); it will be retried once" in errors
    assert re.findall(r"always failed \(ValueError\); (.*)", errors) == [
        "it will be retried once",
        "the other units continue",
    ]
    assert re.findall(r"finished (.*)", errors) == ["never", "once"]


@pytest.mark.parametrize(
    ("address", "missing", "message"),
    [
        ("auto", "ray", r"--cluster=auto needs Ray, which is not installed; pip install 'ray>=2.40'"),
        ("ray://head:10001", "grpc", r"needs Ray's client, which is not installed; pip install 'ray\[client\]'"),
        ("here", "", "--cluster=here is unknown; allowed: local, auto, ray://host:port, none"),
    ],
)
def test_what_is_not_there_is_named_with_its_remedy(monkeypatch, address, missing, message):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(SettingError, match=message):
        cluster.check(address)


PIN = """
import os, sys
pinned = []
os.sched_getaffinity = lambda pid: {3, 4, 7}  # whatever this machine has
os.sched_setaffinity = lambda pid, cores: pinned.append((pid, cores))
from preqn_jax.cli.sweeps import cluster
kept = cluster.pin()
print(pinned, kept is None, flush=True)
sys.stdin.read()
"""


def test_every_worker_has_a_core_of_its_own_while_there_are_enough(tmp_path):
    pytest.importorskip("fcntl")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    workers = [subprocess.Popen([sys.executable, "-c", PIN], **pipes) for _ in range(4)]
    cores = [worker.stdout.readline().strip() for worker in workers]
    for worker in workers:
        worker.communicate()
    assert sorted(cores) == ["[(0, {3})] False", "[(0, {4})] False", "[(0, {7})] False", "[] True"]
