"""Sweeps over seeds and grids: ``python -m experiments.sweep --grid agent.decay=0.5,0.8 --num-seeds=8``.

The flags for the configuration are those of ``experiments.run``. If the environment runs on the device, all members of
the population are trained by one program, in chunks that fit into memory, distributed over the devices. If it runs on
the CPU, every run is a separate process. ``--out`` receives the work directories, plan.json, summary.csv and sweep.png.
The same command resumes interrupted runs from their checkpoints.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from preqn_jax.cli import compilation, lists, processes
from preqn_jax.cli.sweeps import cluster, plan, report
from preqn_jax.cli.sweeps import unit as sweep_unit
from preqn_jax.cli.sweeps.plan import Run, Unit
from preqn_jax.envs import BACKENDS
from preqn_jax.settings import SettingError
from preqn_jax.training import memory, session
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer, Member

_GRID = flags.DEFINE_multi_string(
    "grid",
    [],
    "a field and its values, for example agent.min_alignment=0.9,0.97, or, with semicolons between lists, "
    "'agent.hidden_sizes=64,64;256,256'; can be repeated",
)
_SEEDS = flags.DEFINE_list("seeds", None, "which seeds, for example 0,3,5")
_NUM_SEEDS = flags.DEFINE_integer(
    "num-seeds", None, "number of seeds, starting at --config.seed (default: 3, without --seeds)", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "directory of the runs and the report (default: runs/sweep_<config>)")
_CHUNK = flags.DEFINE_integer(
    "members-per-chunk", None, "members in one program (default: as many as fit into memory)", lower_bound=1
)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "number of parallel processes on a CPU", lower_bound=1)
_CLUSTER = flags.DEFINE_string(
    "cluster",
    None,
    "Ray cluster: local, auto, ray://host:port or none (default: local if Ray is installed, else none)",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, to train one population on the devices of several processes"
)
_PROCESSES = flags.DEFINE_integer("num-processes", 1, "number of processes, with --coordinator", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process-id", 0, "index of this process, with --coordinator", lower_bound=0)


def main(config: Config) -> int:
    """Runs all unfinished runs, then reports on all runs; returns the exit code."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory to the processes of the units
    if config.num_seeds != 1:
        raise SettingError(f"--config.num_seeds={config.num_seeds} has no effect on a sweep, whose runs have one seed "
                           f"each; use --num-seeds={config.num_seeds}")  # fmt: skip
    where = _check_where(config)
    folder = pathlib.Path(_OUT.value or f"runs/sweep_{flags.FLAGS.config}")
    axes = plan.parse_axes(config, _GRID.value)
    seeds = lists.choose_seeds(_SEEDS.value, _NUM_SEEDS.value, range(config.seed, config.seed + 3), config.seed)
    runs = plan.runs_of(axes, seeds)
    leads = where != "together" or _PROCESS.value == 0
    held = processes.lock_existing(folder, "sweep") if leads else None  # before anything is compiled
    if where == "together":
        _join()
    compilation.keep()
    units = plan.resume(folder, config, runs) or _plan(config, runs, where)
    kinds = {
        (unit.config, len(unit.runs)): unit for unit in units
    }  # invalid configurations are rejected before anything runs
    trainers = {kind: sweep_unit.trainer_of(unit) for kind, unit in kinds.items()}
    if where in ("none", "local") and units[0].members is not None and jax.default_backend() == "cpu":
        missing = [unit for unit in units if processes.steps_done(unit, folder) < unit.steps]
        _check_memory([trainers[unit.config, len(unit.runs)].replay_bytes for unit in missing])
    if leads:
        # The variable keeps the directory locked until the sweep ends.
        held = processes.claim(folder, "sweep", {"grid": _GRID.value, "seeds": seeds}, held)
        plan.write(units, folder)
    code, failed = _run(units, folder, where)
    if leads:
        print(report.write(units, axes, folder, failed))
        processes.report_failures(failed)
    return code


def _check_where(config: Config) -> str:
    """Where units run: ``together`` (in several processes), the address of a Ray cluster, or ``none``.

    Raises:
      SettingError: if flags contradict each other, or Ray is required and not installed.
    """
    if _COORDINATOR.value is None:
        if _PROCESSES.value > 1 or _PROCESS.value:
            raise SettingError("--num-processes and --process-id need --coordinator=host:port, of process 0")
        address = _CLUSTER.value or ("local" if cluster.installed() else "none")
        if address != "none":
            cluster.check(address)
        return address
    if _CLUSTER.value not in (None, "none"):
        raise SettingError(f"--cluster={_CLUSTER.value} and --coordinator={_COORDINATOR.value} exclude each other: "
                           "use a cluster for separate runs, or a coordinator for one population over several "
                           "processes")  # fmt: skip
    host, _, port = _COORDINATOR.value.rpartition(":")
    if not (host and port.isdecimal()):
        raise SettingError(f"--coordinator={_COORDINATOR.value} must be host:port of process 0, for example "
                           "localhost:1234")  # fmt: skip
    if _PROCESS.value >= _PROCESSES.value:
        raise SettingError(f"--process-id={_PROCESS.value} must be below --num-processes={_PROCESSES.value}")
    if not config.env.facts.on_device:
        allowed = ", ".join(name for name, facts in BACKENDS.items() if facts.on_device)
        raise SettingError(
            f"--coordinator needs an environment on the device, but config.env.backend={config.env.backend} runs on "
            f"the CPU; allowed: {allowed}, or --cluster instead"
        )
    return "together"


def _join() -> None:
    """Connects this process to the coordinator.

    Raises:
      SettingError: if process 0 cannot start the coordinator, or the coordinator cannot be reached.
    """
    try:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except RuntimeError as error:
        raise SettingError(f"--coordinator={_COORDINATOR.value}: {str(error).splitlines()[0]}") from None


def _check_memory(replays: Sequence[int]) -> None:
    """Raises SettingError unless the largest of these replay buffers [bytes], one per worker, fit into memory."""
    largest = sorted(replays)[-_WORKERS.value :]
    remedy = "lower --workers, --members-per-chunk or config.replay_capacity"
    available = memory.of_devices(jax.local_devices()[0])
    memory.check(sum(largest), f"--workers={_WORKERS.value}", f"{len(largest)} replay buffer(s)", remedy, available)


def _plan(config: Config, runs: Sequence[Run], where: str) -> list[Unit]:
    """Groups all runs into units, each with ``--members-per-chunk`` members, or with as many as fit into memory."""
    if not config.env.facts.on_device:
        return plan.units_of(config, runs, lambda config, count: 1)
    devices = 1 if where not in ("together", "none") else len(jax.devices())  # a task of a cluster has one
    if where == "together" and len(runs) % devices:
        raise SettingError(f"{len(runs)} members cannot be spread evenly over {devices} devices; nearest: "
                           f"{-(-len(runs) // devices) * devices} members")  # fmt: skip
    largest = lambda config, count: _CHUNK.value or _fitting(config, count, devices)  # noqa: E731
    return plan.units_of(config, runs, largest, devices)


def _fitting(config: Config, count: int, devices: int) -> int:
    """How many of ``count`` members one program should hold: as many as fit; on a CPU, at most one worker's share."""
    on_cpu, processes = jax.default_backend() == "cpu", jax.process_count()
    shares = _WORKERS.value if on_cpu and processes == 1 else 1
    share = -(-count // shares)
    if share == 1:
        return 1
    trainer = DeviceTrainer(config, [Member(config.seed)], devices=[jax.local_devices()[0]])
    member = trainer.member_bytes()
    if on_cpu:
        member += trainer.replay_bytes  # writing a checkpoint needs a copy, which is in the same memory
    of_process = memory.of_devices(jax.local_devices()[0], devices // processes)
    fit = processes * int(0.9 * of_process / shares / member)
    if processes > 1:  # all processes must use the same number
        fit = int(multihost_utils.process_allgather(np.asarray(fit)).min())
    if fit < processes:
        raise SettingError("a single member of the population does not fit into memory; lower config.replay_capacity")
    return min(share, fit)


def _run(units: Sequence[Unit], folder: pathlib.Path, where: str) -> tuple[int, dict[str, str]]:
    """Runs the unfinished units; returns the exit code, and the reasons of failures by the name of the unit."""
    if where == "together":
        return _run_together(units, folder), {}
    if where != "none":
        missing = [unit for unit in units if processes.steps_done(unit, folder) < unit.steps]
        return cluster.run(missing, folder, where, _WORKERS.value) if missing else (0, {})
    on_accelerator = units[0].members is not None and jax.default_backend() != "cpu"
    runner = processes.Runner(units, folder, 1 if on_accelerator else _WORKERS.value, pin=not on_accelerator)
    code = runner.run()
    return code, runner.failed


def _run_together(units: Sequence[Unit], folder: pathlib.Path) -> int:
    """Runs the units one after the other, each on the devices of all processes."""
    stop = session.StopSignal()
    multihost_utils.sync_global_devices("the sweep's directory exists")
    for unit in units:
        program = functools.partial(_train, unit, folder, stop)
        if code := session.guarded(program, folder / unit.name):
            return code
    multihost_utils.sync_global_devices("every process has finished")
    return 0


def _train(unit: Unit, folder: pathlib.Path, stop: session.StopSignal) -> int:
    return 0 if sweep_unit.run(unit, folder, stop) else 128 + stop.received
