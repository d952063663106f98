import dataclasses
import errno
import os
import pathlib

import pytest

from preqn_jax.agents.ddpg import DDPGConfig
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.training.workdir import claim

CONFIG = presets.get_config("preqn_hopper")


def test_a_folder_is_one_process_s_at_a_time(tmp_path):
    lock = claim(tmp_path / "run", CONFIG)
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(SettingError, match="in use"):
        claim(tmp_path / "run", dataclasses.replace(CONFIG, total_steps=2_000_000))
    assert (tmp_path / "run" / "config.json").read_text() == before
    lock.close()
    claim(tmp_path / "run", CONFIG).close()


def test_a_run_may_get_longer_and_nothing_else(tmp_path):
    claim(tmp_path / "run", CONFIG).close()
    claim(tmp_path / "run", dataclasses.replace(CONFIG, total_steps=2_000_000)).close()
    with pytest.raises(SettingError, match=r"config\.seed=0, not 1"):
        claim(tmp_path / "run", dataclasses.replace(CONFIG, seed=1))


def test_a_run_of_another_agent_is_refused_even_if_all_fields_agree(tmp_path):
    naive = presets.get_config("naive_ddpg_hopper")
    claim(tmp_path / "run", naive).close()
    same_fields = dataclasses.replace(presets.get_config("ddpg_hopper"), agent=DDPGConfig(target_network=False))
    with pytest.raises(SettingError, match="holds a run of naive_ddpg, not of ddpg; choose another --workdir"):
        claim(tmp_path / "run", same_fields)


def test_a_run_s_environment_keeps_its_arguments(tmp_path):
    with_argument = presets.override(CONFIG, "env.kwargs.healthy_z_range=[0.1, 1]")
    claim(tmp_path / "run", with_argument).close()
    claim(tmp_path / "run", with_argument).close()
    with pytest.raises(SettingError, match=r'config\.env\.kwargs={"healthy_z_range": \[0\.1, 1\]}, not {}'):
        claim(tmp_path / "run", CONFIG)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SettingError, match="holds no run"):
        claim(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_first_record_could_not_be_written_is_used_by_the_next_attempt(tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr("preqn_jax.training.workdir.replace_file", full_disk)
        with pytest.raises(SettingError, match="No space left on device"):
            claim(tmp_path / "run", CONFIG)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    (tmp_path / "run" / "config.json.partial").write_text("{")
    claim(tmp_path / "run", CONFIG).close()
    assert presets.read_config(tmp_path / "run")


def test_a_folder_that_cannot_be_made_or_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", pathlib.Path("/proc/run")):
        with pytest.raises(SettingError, match=f"--workdir={folder} cannot be written: [A-Z].*; choose a writable"):
            claim(folder, CONFIG)
    monkeypatch.setattr("preqn_jax.training.workdir.replace_file", full_disk)
    with pytest.raises(SettingError, match="run cannot be written: No space left on device"):
        claim(tmp_path / "run", CONFIG)


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
