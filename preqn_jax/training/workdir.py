"""Claims and locks the work directory of a run."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import IO, Any

from preqn_jax import settings
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.config import Config
from preqn_jax.training.files import replace_file
from preqn_jax.training.presets import CONFIG_FILE, check_fields, read_config, recorded, to_dict

try:
    import fcntl
except ImportError:  # Windows: work directories are not locked there
    fcntl = None  # type: ignore[assignment]


_OF_A_CLAIM = {".lock", f"{CONFIG_FILE}.partial"}  # left behind if a process ends before config.json is complete


def claim(workdir: pathlib.Path, config: Config) -> IO[str]:
    """Creates the work directory, or checks that it belongs to this run, and locks it.

    Files of an earlier part of the run are not changed; :func:`write_record` updates the record when training starts.

    Returns:
      The lock file. The directory stays locked until it is closed.

    Raises:
      SettingError: if the directory holds anything but an earlier part of this run, another process uses it, or it
        cannot be written.
    """
    try:
        return _claim(workdir, config)
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _claim(workdir: pathlib.Path, config: Config) -> IO[str]:
    record = workdir / CONFIG_FILE
    if record.exists():
        check_same(workdir, config)
    elif workdir.exists() and (not workdir.is_dir() or not {file.name for file in workdir.iterdir()} <= _OF_A_CLAIM):
        raise SettingError(f"--workdir={workdir} exists and holds no run; choose another")
    workdir.mkdir(parents=True, exist_ok=True)
    held = lock(workdir)
    if not record.exists():
        write_record(workdir, config)
    return held


def write_record(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json into the work directory: configuration, versions, commit, device and command.

    Raises:
      SettingError: if it cannot be written.
    """
    content = {"config": to_dict(config), **provenance.collect()}
    if events := read_json(workdir / CONFIG_FILE).get("events"):
        content["events"] = events  # recorded by earlier parts of the run
    try:
        replace_file(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _unwritable(workdir: pathlib.Path, error: OSError) -> SettingError:
    return SettingError(
        f"--workdir={workdir} cannot be written: {error.strerror or error}; choose a writable directory"
    )


def results_folder(out: str, record: str = "", options: Mapping[str, Any] | None = None) -> pathlib.Path:
    """Returns the directory named by ``--out``, and creates it if needed.

    Args:
      out: path of the directory.
      record: name of the JSON file, with the entry ``settings``, that the program writes when it has finished.
      options: the settings of the present call, which an existing record must match.

    Raises:
      SettingError: if the directory cannot be written, or holds a run, a suite, or results of other settings.
    """
    folder = pathlib.Path(out)
    for name in (CONFIG_FILE, "suite.json", "plan.json"):
        if (folder / name).exists():
            raise SettingError(f"--out={folder} holds a run or a suite ({name}); choose another")
    if record and (folder / record).exists():
        before, now = read_json(folder / record).get("settings"), json.loads(json.dumps(options))
        if before != now:
            raise SettingError(f"--out={folder} holds results of other settings ({before}, not {now}); choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out={folder} cannot be a directory: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise SettingError(f"--out={folder} cannot be written; choose a writable directory")
    return folder


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the object in a JSON file; returns {} if the file is missing or holds no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def lock(folder: pathlib.Path, flag: str = "--workdir", user: str = "process") -> IO[str]:
    """Opens and locks a file; the operating system releases the lock when the process ends, for whatever reason.

    Raises:
      SettingError: if another process has locked it; the message names ``flag``, and calls the process ``user``.
    """
    file = (folder / ".lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SettingError(f"{flag}={folder} is in use by another {user}; wait for it, or choose another") from None
    return file


def check_same(workdir: pathlib.Path, config: Config, flag: str = "--workdir") -> None:
    """Checks that the run in ``workdir`` has this configuration, except for ``total_steps``, which may differ.

    Raises:
      SettingError: if a field differs; the message names the first such field and the flag that sets the directory.
    """
    before = read_config(workdir)
    if (agent := before.get("algorithm")) != config.agent.name:
        raise SettingError(f"{workdir} holds a run of {agent}, not of {config.agent.name}; choose another {flag}")
    check_fields(before, config)
    if difference := _difference(before, config):
        path, old, new = difference
        raise SettingError(f"{workdir} holds a run with config.{path}={old}, not {new}; choose another {flag}")


def check_recorded(workdir: pathlib.Path, config: Config, record: Mapping[str, Any], step: int) -> None:
    """Checks that a checkpoint was written with the configuration in config.json, which might have been edited.

    Args:
      workdir: work directory of the run.
      config: the configuration in its config.json.
      record: the record of the checkpoint; one without a configuration is not checked.
      step: environment step of the checkpoint.

    Raises:
      SettingError: if a field other than ``total_steps`` differs; the message names the first such field.
    """
    if "config" in record and (difference := _difference(record["config"], config)):
        path, old, new = difference
        raise SettingError(
            f"{workdir / CONFIG_FILE} has {path}={new}, but checkpoint {step} was written with {path}={old}; restore "
            f"{CONFIG_FILE}, or train with this value in another directory"
        )


def _difference(before: Mapping[str, Any], config: Config) -> tuple[str, str, str] | None:
    """Path, old and new value of the first field, except ``total_steps``, that differs from a nested dict."""
    if before.get("algorithm") != config.agent.name:
        return "algorithm", str(before.get("algorithm")), config.agent.name
    for leaf in settings.leaves(config):
        try:
            old = recorded(before, leaf)
        except KeyError:
            old = None
        if leaf.path != "total_steps" and old != leaf.value:
            return leaf.path, settings.spell(old), settings.spell(leaf.value)
    return None
