"""The work folder of a run: whose it is, and that nobody else is at it."""

from __future__ import annotations

import json
import os
import pathlib
from typing import IO, Any

from experiments import provenance
from experiments.configs import CONFIG_FILE, read_config
from experiments.loggers import replace_file
from preqn_jax import settings
from preqn_jax.config import Config
from preqn_jax.settings import SettingError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None  # type: ignore[assignment]


def claim(workdir: pathlib.Path, config: Config) -> IO[str]:
    """Makes the work folder this run's, or makes sure that it is; the folder is taken until the result is closed.

    Raises:
      SettingError: if it holds anything but an earlier part of this very run, or another process is at it.
    """
    record = workdir / CONFIG_FILE
    resolved = json.loads(json.dumps(settings.to_dict(config)))
    if record.exists():
        _check_same(workdir, read_config(workdir), resolved)
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise SettingError(f"--workdir={workdir} exists and holds no run; choose another")
    workdir.mkdir(parents=True, exist_ok=True)
    lock = _lock(workdir)
    replace_file(record, json.dumps({"config": resolved, **provenance.collect()}, indent=2) + "\n")
    return lock


def results_folder(out: str) -> pathlib.Path:
    """The folder that ``--out`` names, made if it is not there.

    Raises:
      SettingError: if it cannot be written.
    """
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--out={folder} cannot be a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise SettingError(f"--out={folder} cannot be written: give a folder that can be")
    return folder


def _lock(workdir: pathlib.Path) -> IO[str]:
    """An open file that the system takes as a lock, and gives up with the process, however that ends."""
    file = (workdir / ".lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise SettingError(
                f"--workdir={workdir} is in use by another process; wait for it, or choose another"
            ) from None
    return file


def _check_same(workdir: pathlib.Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run may be made longer; everything else has to stay."""
    for path, value in _flat({**now, "total_steps": None}).items():
        old = _flat({**before, "total_steps": None}).get(path)
        if old != value:
            raise SettingError(
                f"--workdir={workdir} holds a run with config.{path}={old}, not {value}; choose another --workdir"
            )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
