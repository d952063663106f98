"""Units on a Ray of this machine's own."""

import re

import pytest

from experiments import cluster, configs
from experiments.sweep_plan import Unit

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
    units = [Unit(name, configs.get_config("preqn_hopper"), (), None) for name in ("always", "once", "never")]
    code, failed = cluster.run(units, tmp_path, "local", workers=1)
    assert code == 1
    assert failed == {"always": "ValueError"}  # without a message
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"always": "xx", "once": "xx", "never": "x"}
    errors = capsys.readouterr().err
    assert "once failed (attempt 1 broke); it is tried once more" in errors
    assert re.findall(r"always failed \(ValueError\); (.*)", errors) == ["it is tried once more", "the rest goes on"]
    assert re.findall(r"finished (.*)", errors) == ["never", "once"]
