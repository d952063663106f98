"""Runs training runs as parallel processes, each on one core; they can be resumed."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple, Protocol

from preqn_jax.settings import SettingError
from preqn_jax.training import plots, provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import Progress, message
from preqn_jax.training.workdir import lock, read_json

RECORD = "suite.json"  # in the directory of every suite: kind, options, versions and hardware


class Task(Protocol):
    """A job for a :class:`Runner`."""

    @property
    def name(self) -> str:
        """The name of the work directory."""

    @property
    def steps(self) -> int:
        """The length of the run [environment steps]."""

    def command(self, folder: pathlib.Path) -> list[str]:
        """The command that runs the job, with its work directory in ``folder``."""


class Process(NamedTuple):
    """A job that is running."""

    job: Task
    attempt: int
    started: float
    core: int | None
    handle: subprocess.Popen[bytes]


def claim(folder: pathlib.Path, kind: str, options: dict[str, Any], held: IO[str] | None = None) -> IO[str]:
    """Creates the directory of a suite, or checks that it holds a suite of the same kind; locks and records it.

    Args:
      folder: directory of the suite.
      kind: name of the suite.
      options: options of the suite, for the record.
      held: the lock, if :func:`lock_existing` has returned one.

    Returns:
      The lock file. The directory stays locked until it is closed.

    Raises:
      SettingError: if the directory holds anything else, another process uses it, or it cannot be written.
    """
    held = held or lock_existing(folder, kind)
    if held is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"--out={folder} exists and is not the directory of a suite; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"kind": kind, "options": options, **provenance.collect()}
        replace_file(folder / RECORD, json.dumps(record, indent=2) + "\n")
        return held or lock(folder, "--out", kind)
    except OSError as error:
        raise SettingError(f"--out={folder} cannot be written: {error.strerror}") from None


def lock_existing(folder: pathlib.Path, kind: str) -> IO[str] | None:
    """Locks the directory of an earlier suite of the same kind.

    Only the process that starts the runs may call this; the runs, which may be on other machines, lock their own work
    directories.

    Returns:
      The lock file, or None if the directory holds no suite, in which case nothing is written.

    Raises:
      SettingError: if the directory holds another kind of suite, another process uses it, or it cannot be locked.
    """
    if not (folder / RECORD).exists():
        return None
    if (found := read_json(folder / RECORD).get("kind")) != kind:
        raise SettingError(f"--out={folder} holds results of another suite ({found}, not {kind}); choose another")
    try:
        return lock(folder, "--out", kind)
    except OSError as error:
        raise SettingError(f"--out={folder} cannot be written: {error.strerror}") from None


def steps_done(job: Task, folder: pathlib.Path) -> int:
    """The environment step of the last evaluation in a job's metrics.csv.

    Raises:
      SettingError: if the file is damaged, or goes on beyond the last step of the job without an evaluation there.
    """
    path = folder / job.name / "metrics.csv"
    steps = plots.evaluated_steps(path)
    if steps and steps[-1] > job.steps and job.steps not in steps:
        found = ", ".join(map(str, steps))
        raise SettingError(
            f"{path} has no evaluation of step {job.steps} to report on; choose one of its steps: {found}"
        )
    return steps[-1] if steps else 0


class Runner:
    """Runs jobs in at most ``workers`` parallel processes."""

    poll_seconds = 0.5
    attempts = 2

    def __init__(self, jobs: Sequence[Task], folder: pathlib.Path, workers: int, pin: bool = True):
        """Pins each process to one core if ``pin``; raises SettingError if an earlier result cannot be read."""
        self._folder, self._workers, self._jobs, self._pins = folder, workers, jobs, pin
        self._done = {job.name: min(job.steps, steps_done(job, folder)) for job in jobs}
        self._waiting = collections.deque((job, 1) for job in jobs if self._done[job.name] < job.steps)
        self._running: list[Process] = []
        self._stopped = 0
        self.failed: dict[str, str] = {}

    def run(self) -> int:
        """Runs all unfinished jobs; returns 0, 1 if a job failed twice, or 128 + the number of the signal received."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        waiting = len(self._waiting)
        self._say(f"{len(self._jobs) - waiting} of {len(self._jobs)} runs are complete, {waiting} remain, "
                  f"{self._workers} at a time")  # fmt: skip
        total = sum(job.steps for job in self._jobs)
        self._bar = Progress(total, " steps", sum(self._done.values()), smoothing=0.05)
        try:
            while self._running or (self._waiting and not self._stopped):
                while len(self._running) < self._workers and self._waiting and not self._stopped:
                    self._start(*self._waiting.popleft())
                time.sleep(self.poll_seconds)
                self._collect()
                self._advance()
        finally:
            for process in self._running:  # only after an exception in this method
                process.handle.terminate()
            self._bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopped:
            self._say("stopped; the same command resumes")
            return 128 + self._stopped
        return 1 if self.failed else 0

    def _say(self, text: str) -> None:
        message(text)

    def _stop(self, number: int, frame: Any) -> None:
        """Makes every run write a checkpoint and stop; a second signal kills them immediately."""
        for process in self._running:
            process.handle.send_signal(signal.SIGKILL if self._stopped else signal.SIGTERM)
        self._stopped = number

    def _start(self, job: Task, attempt: int) -> None:
        # In its own session, so that Ctrl-C in the terminal reaches it only once, through this process.
        log = (self._folder / f"{job.name}.log").open("ab")
        handle = subprocess.Popen(
            job.command(self._folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread(self._folder)},
            start_new_session=True,
        )
        log.close()
        self._running.append(Process(job, attempt, time.monotonic(), self._pin(handle.pid), handle))
        if self._stopped:  # a signal arrived before the process was in the list
            handle.terminate()
        self._say(f"started {job.name}")

    def _pin(self, pid: int) -> int | None:
        """Pins a new process to the core with the fewest processes; None if pinning is disabled or not supported.

        Without pinning, XLA's threads move every small operation between cores: on two cores, two such processes in
        parallel had a tenth of the speed that they have when pinned.
        """
        if not self._pins or not hasattr(os, "sched_setaffinity"):
            return None
        taken = [process.core for process in self._running]
        core = min(sorted(os.sched_getaffinity(0)), key=taken.count)
        with contextlib.suppress(OSError):  # the process may have ended already
            os.sched_setaffinity(pid, {core})
        return core

    def _collect(self) -> None:
        for process in [process for process in self._running if process.handle.poll() is not None]:
            self._running.remove(process)
            job, minutes = process.job, (time.monotonic() - process.started) / 60
            if process.handle.returncode == 0:
                self._say(f"finished {job.name} in {minutes:.1f} min")
            elif self._stopped:
                pass  # it was asked to stop
            else:
                self._retry(process)

    def _retry(self, process: Process) -> None:
        job, reason = process.job, _last_line(self._folder / f"{process.job.name}.log")
        again = process.attempt < self.attempts
        self._say(f"{job.name} failed ({reason}); {'it will be retried once' if again else 'the other runs continue'}")
        if again:
            self._waiting.append((job, process.attempt + 1))
        else:
            self.failed[job.name] = reason

    def _advance(self) -> None:
        for process in self._running:
            try:
                done = min(process.job.steps, steps_done(process.job, self._folder))
            except SettingError:  # no reason to stop the others; the report will mention it
                continue
            self._bar.advance(done - self._done[process.job.name])
            self._done[process.job.name] = done


def one_thread(folder: pathlib.Path) -> dict[str, str]:
    """Environment variables of each process: one thread, no preallocation of GPU memory, a shared compilation cache."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str((folder / "compiled").absolute())),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "OMP_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def report_failures(failed: Mapping[str, str]) -> None:
    """Prints one line for each job that failed twice, with the reason."""
    for name, reason in failed.items():
        print(f"failed twice: {name}: {reason}", file=sys.stderr)
