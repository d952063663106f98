"""One unit of a sweep, by itself: ``python -m preqn_jax.cli.sweeps.unit --out=DIR --unit=NAME``.

``experiments.sweep`` plans the units and starts this program for each; a person needs it only to look into one.
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
from preqn_jax.cli.sweeps.plan import Unit
from preqn_jax.settings import SettingError
from preqn_jax.training import session
from preqn_jax.training.base import Infos, Trainer
from preqn_jax.training.checkpoint import Checkpoints
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer
from preqn_jax.training.loop import make_trainer
from preqn_jax.training.reporters import Attempts, EventsRecord, MetricsTable, Row, Terminal, means


def define_flags() -> None:
    """Only where this is the program: its pieces serve others that have such flags themselves."""
    flags.DEFINE_string("out", None, "folder of the sweep")
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
    """Trains the unit from its newest checkpoint on; whether it reached its end.

    Raises:
      SettingError, CheckpointError, NonFiniteError: as ``session.train`` does.
    """
    trainer, workdir = trainer_of(unit), folder / unit.name
    if jax.process_count() > 1:
        assert isinstance(trainer, DeviceTrainer)
        return _run_together(unit, trainer, workdir, should_stop)
    numbers = [run.number for run in unit.runs]
    return session.train(trainer, workdir, lambda step: UnitReporter(workdir, unit.config, numbers, step), should_stop)


def _run_together(unit: Unit, trainer: DeviceTrainer, workdir: pathlib.Path, should_stop: Callable[[], bool]) -> bool:
    """In each of several processes: one set of checkpoints for all, and a work folder with the metrics of its own runs.

    A checkpoint takes every process, so one that is told to stop does so after the next that is due.
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
    """The unit's trainer, on all devices of all processes if there are several; nothing is compiled yet.

    Raises:
      SettingError: if it cannot be.
    """
    if unit.members is None:
        return make_trainer(unit.config)
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))  # block by block
    if jax.process_count() == 1:  # fewer members than devices, or a chunk of a size that was asked for
        devices = devices[: max(n for n in range(1, len(devices) + 1) if len(unit.members) % n == 0)]
    return DeviceTrainer(unit.config, unit.members, devices)


class UnitReporter:
    """Reports the runs of a unit, each row with the number of its run, into metrics.csv and to the terminal."""

    def __init__(self, workdir: pathlib.Path, config: Config, numbers: Sequence[int], first_step: int):
        """Drops what an earlier attempt reported past ``first_step``, where this one goes on."""
        self._table = MetricsTable(workdir / "metrics.csv", first_step)
        self._events = EventsRecord(workdir, first_step)
        self._terminal = Terminal(config.total_steps, len(numbers), first_step)
        self._attempt = Attempts(self._terminal.message)
        self._numbers = numbers

    def message(self, text: str) -> None:
        """One line for the user."""
        self._terminal.message(text)

    def event(self, event: dict[str, Any]) -> None:
        """Keeps it in the unit's config.json, with the number of the run."""
        member = event.get("member")
        self._events.add(event if member is None else {**event, "run": self._numbers[member]})
        self._attempt("config.json", self._events.write)

    def progress(self, step: int, info: Infos) -> None:
        """Moves the progress bar."""
        self._terminal.progress(step, means(info))

    def checkpoint(self) -> None:
        """Does nothing: all that was reported is already written."""

    def evaluation(self, rows: list[Row | None]) -> None:
        """Appends to the table and the terminal."""
        numbered = zip(rows, self._numbers, strict=True)
        left = [{**row, "run": number} for row, number in numbered if row is not None]
        if left:  # of a process whose members were all stopped there is nothing left
            self._table.append(left)
            self._attempt("metrics.csv", self._table.write)
            self._terminal.evaluation(left)

    def close(self) -> None:
        """Ends the progress bar."""
        self._terminal.close()


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
