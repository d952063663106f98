"""Runs one unit of a sweep: ``python -m preqn_jax.cli.sweeps.unit --out=DIR --unit=NAME``.

``experiments.sweep`` plans the units and starts this program for each of them; users need it only for debugging.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags

from preqn_jax import settings
from preqn_jax.cli import command_line, compilation
from preqn_jax.cli.sweeps import plan
from preqn_jax.cli.sweeps.plan import Run, Unit
from preqn_jax.settings import SettingError
from preqn_jax.training import session
from preqn_jax.training.base import Infos, Trainer
from preqn_jax.training.checkpoint import Checkpoints
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer
from preqn_jax.training.loop import make_trainer
from preqn_jax.training.presets import CONFIG_FILE
from preqn_jax.training.reporters import Attempts, EventsRecord, MetricsTable, Row, Terminal, means
from preqn_jax.training.workdir import read_json
from preqn_jax.types import NonFiniteError


def define_flags() -> None:
    """Defines the flags; only called if this module is the program, since importers have flags of the same names."""
    flags.DEFINE_string("out", None, "directory of the sweep")
    flags.DEFINE_string("unit", None, "name of the unit")


def main() -> int:
    """Trains; returns the exit code."""
    folder = pathlib.Path(flags.FLAGS.out or "")
    units = {unit.name: unit for unit in plan.read(folder)}
    if flags.FLAGS.unit not in units:
        raise SettingError(settings.unknown("--unit", str(flags.FLAGS.unit), units))
    stop = session.StopSignal()
    compilation.keep()
    unit = units[flags.FLAGS.unit]
    finished = lambda: 0 if run(unit, folder, stop) else 128 + stop.received  # noqa: E731
    return session.guarded(finished, folder / unit.name)


def run(unit: Unit, folder: pathlib.Path, should_stop: Callable[[], bool] = lambda: False) -> bool:
    """Trains the unit, resuming from its newest checkpoint; returns whether it is complete.

    Raises:
      SettingError, CheckpointError, NonFiniteError: see ``session.train``.
    """
    trainer, workdir = trainer_of(unit), folder / unit.name
    if jax.process_count() > 1:
        assert isinstance(trainer, DeviceTrainer)
        return _run_together(unit, trainer, workdir, should_stop)
    numbers = [run.number for run in unit.runs]
    try:
        return session.train(
            trainer, workdir, lambda step: UnitReporter(workdir, unit.config, numbers, step), should_stop
        )
    except NonFiniteError as error:
        record_divergence(workdir, unit.runs, trainer.step, str(error))
        raise


def record_divergence(workdir: pathlib.Path, runs: Sequence[Run], step: int, reason: str) -> None:
    """Records that all runs of a unit were stopped, as UnitReporter.event does while others continue.

    The next attempt resumes before ``step``, and removes what is recorded here.
    """
    recorded = {event.get("run") for event in read_json(workdir / CONFIG_FILE).get("events", [])
                if event["event"] == "stopped"}  # fmt: skip
    events = EventsRecord(workdir, step)
    for run in runs:
        if run.number not in recorded:
            events.add({"event": "stopped", "step": step, "seed": run.seed, "run": run.number, "reason": reason})
    events.write()


def _run_together(unit: Unit, trainer: DeviceTrainer, workdir: pathlib.Path, should_stop: Callable[[], bool]) -> bool:
    """Trains in one of several processes, which share checkpoints; each has a work directory for its own runs' metrics.

    Since a checkpoint needs all processes, a process that is asked to stop does so after the next scheduled checkpoint.
    """
    each = len(unit.runs) // jax.process_count()
    numbers = [run.number for run in unit.runs][jax.process_index() * each :][:each]
    own = workdir / f"process{jax.process_index()}"
    return session.train(
        trainer,
        own,
        lambda step: UnitReporter(own, unit.config, numbers, step),
        lambda: trainer.step % unit.config.checkpoint_every == 0 and should_stop(),
        Checkpoints(workdir / "checkpoints", sharding=trainer.sharding),
    )


def trainer_of(unit: Unit) -> Trainer:
    """Creates the trainer of a unit, on the devices of all processes, without compiling anything.

    Raises:
      SettingError: if the configuration is invalid.
    """
    if unit.members is None:
        return make_trainer(unit.config)
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))  # contiguous blocks
    if jax.process_count() == 1:  # there may be fewer members than devices, or a size set by the user
        devices = devices[: max(n for n in range(1, len(devices) + 1) if len(unit.members) % n == 0)]
    return DeviceTrainer(unit.config, unit.members, devices)


class UnitReporter:
    """Writes the metrics of a unit's runs, with the number of the run in each row, to metrics.csv and the terminal."""

    def __init__(self, workdir: pathlib.Path, config: Config, numbers: Sequence[int], first_step: int):
        """Opens the files; removes what an earlier attempt reported after ``first_step``, where this run resumes."""
        self._table = MetricsTable(workdir / "metrics.csv", first_step)
        self._events = EventsRecord(workdir, first_step)
        self._terminal = Terminal(config.total_steps, len(numbers), first_step)
        self._attempt = Attempts(self._terminal.message)
        self._numbers = numbers
        if jax.process_count() == 1:  # else all runs of this process may have been stopped, which leaves no rows
            self._table.warn_of_gaps(config.evaluate_every, first_step, self.message)

    def message(self, text: str) -> None:
        """Prints one line to the terminal."""
        self._terminal.message(text)

    def event(self, event: dict[str, Any]) -> None:
        """Stores the event in the unit's config.json, with the number of the run."""
        member = event.get("member")
        self._events.add(event if member is None else {**event, "run": self._numbers[member]})
        self._attempt("config.json", self._events.write)

    def progress(self, step: int, info: Infos) -> None:
        """Advances the progress bar."""
        self._terminal.progress(step, means(info))

    def checkpoint(self) -> None:
        """Does nothing, since everything reported so far is already written."""

    def evaluation(self, rows: list[Row | None]) -> None:
        """Writes the rows to the table and the terminal."""
        numbered = zip(rows, self._numbers, strict=True)
        left = [{**row, "run": number} for row, number in numbered if row is not None]
        if left:  # empty if all members of this process were stopped
            self._table.append(left)
            self._attempt("metrics.csv", self._table.write)
            self._terminal.evaluation(left)

    def close(self) -> None:
        """Closes the progress bar."""
        self._terminal.close()


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
