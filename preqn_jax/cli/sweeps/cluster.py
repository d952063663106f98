"""Runs units of a sweep as tasks of a Ray cluster; Ray is optional (``pip install 'ray[client]'``)."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from preqn_jax.cli.processes import Runner, one_thread
from preqn_jax.cli.sweeps.plan import Unit
from preqn_jax.settings import SettingError
from preqn_jax.training import provenance
from preqn_jax.training.progress import Progress, message
from preqn_jax.training.workdir import fcntl

RETRIES = 3  # by Ray itself, of a task whose worker died; each retry resumes from the unit's checkpoint


def installed() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def check(address: str) -> None:
    """Raises SettingError if the address is invalid, or needs a package that is not installed."""
    if address not in ("local", "auto") and not address.startswith("ray://"):
        raise SettingError(f"--cluster={address} is unknown; allowed: local, auto, ray://host:port, none")
    if not installed():
        raise SettingError(f"--cluster={address} needs Ray, which is not installed; pip install 'ray>=2.40', or leave "
                           "--cluster out to run on this machine without it")  # fmt: skip
    if address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise SettingError(f"--cluster={address} needs Ray's client, which is not installed; pip install 'ray[client]'")


def run(units: Sequence[Unit], folder: pathlib.Path, address: str, workers: int) -> tuple[int, dict[str, str]]:
    """Runs units on a cluster, one at a time per processor, or per accelerator if the units need one.

    Args:
      units: the unfinished units.
      folder: directory of the sweep, on storage that all machines of the cluster access under the same path.
      address: ``local`` starts a cluster on this machine and stops it afterwards; ``auto`` uses the one that runs on
        this machine; ``ray://host:port`` uses a remote one.
      workers: number of processors of a local cluster.

    Returns:
      The exit code, 1 if a unit failed twice; and the reasons of those failures by the name of the unit.

    Raises:
      SettingError: if the cluster cannot be reached.
    """
    import ray

    path = os.pathsep.join([str(pathlib.Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path.strip(os.pathsep), provenance.COMMAND: provenance.command()}
    environment = {"env_vars": {**one_thread(folder), **variables}}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            ray.init("local", num_cpus=workers, include_dashboard=False, **options)
        else:
            ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"--cluster={address}: the cluster cannot be reached ({reason}); allowed: local, auto, ray://host:port"
        ) from None
    try:
        return _collect(units, folder)
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoints", file=sys.stderr)
        return 130, {}
    finally:
        ray.shutdown()


def _collect(units: Sequence[Unit], folder: pathlib.Path) -> tuple[int, dict[str, str]]:
    import ray

    gpus = 1 if units[0].members is not None and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_run)
    start = functools.partial(task.remote, str(folder.absolute()))
    waiting, failed = {start(unit.name): (unit, 1) for unit in units}, {}
    with Progress(len(waiting), " units") as progress:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            unit, attempt = waiting.pop(done)
            try:
                ray.get(done)
                message(f"finished {unit.name}")
            except ray.exceptions.RayError as error:
                reason = _reason(error)
                # Only if the task raised an exception: if its worker died, Ray itself has retried already.
                again = attempt < Runner.attempts and isinstance(error, ray.exceptions.RayTaskError)
                what_next = "it will be retried once" if again else "the other units continue"
                message(f"{unit.name} failed ({reason}); {what_next}")
                if again:
                    waiting[start(unit.name)] = unit, attempt + 1
                    continue
                failed[unit.name] = reason
            progress.advance()
    return (1 if failed else 0), failed


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[-1]


def _run(folder: str, name: str) -> None:
    """Trains one unit in a process of the cluster."""
    import ray

    if not ray.get_gpu_ids():
        pin()  # before JAX starts its threads
    from preqn_jax.cli import compilation
    from preqn_jax.cli.sweeps import plan
    from preqn_jax.cli.sweeps import unit as sweep_unit

    compilation.keep()
    (unit,) = [unit for unit in plan.read(pathlib.Path(folder)) if unit.name == name]
    with (pathlib.Path(folder) / f"{name}.log").open("a", buffering=1) as log, contextlib.redirect_stderr(log):
        sweep_unit.run(unit, pathlib.Path(folder))


@functools.cache  # a worker process keeps the core to which its first task has pinned it
def pin() -> IO[str] | None:
    """Pins this process to a core to which no other process was pinned by this function.

    Returns:
      The open lock file, which reserves the core as long as the process lives; None if no core is free, or pinning is
      not supported.
    """
    if fcntl is None or not hasattr(os, "sched_setaffinity"):
        return None
    for core in sorted(os.sched_getaffinity(0)):
        file = (pathlib.Path(tempfile.gettempdir()) / f"preqn_jax_core{core}_{os.getuid()}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        os.sched_setaffinity(0, {core})
        return file
    return None
