"""One unit of a sweep, by itself: ``python -m experiments.sweep_unit --out=DIR --unit=NAME``.

``experiments.sweep`` plans the units and starts this program for each; a person needs it only to look into one.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import jax
from absl import flags

from experiments import compilation, sweep_plan, training
from experiments import flags as command_line
from experiments.loggers import MetricsTable, Row, Terminal
from experiments.sweep_plan import Unit
from preqn_jax import settings
from preqn_jax.config import Config
from preqn_jax.settings import SettingError
from preqn_jax.train import make_trainer
from preqn_jax.trainers.base import Infos, Trainer
from preqn_jax.trainers.device import DeviceTrainer


def define_flags() -> None:
    """Only where this is the program: its pieces serve others that have such flags themselves."""
    flags.DEFINE_string("out", None, "folder of the sweep")
    flags.DEFINE_string("unit", None, "name of the unit")


def main() -> int:
    """Trains; returns the exit code."""
    folder = pathlib.Path(flags.FLAGS.out or "")
    units = {unit.name: unit for unit in sweep_plan.read(folder)}
    if flags.FLAGS.unit not in units:
        raise SettingError(settings.unknown("--unit", str(flags.FLAGS.unit), units))
    stop = training.StopSignal()
    compilation.keep()
    unit = units[flags.FLAGS.unit]
    finished = lambda: 0 if run(unit, folder, stop) else 128 + stop.received  # noqa: E731
    return training.guarded(finished, folder / unit.name)


def run(unit: Unit, folder: pathlib.Path, should_stop: Callable[[], bool] = lambda: False) -> bool:
    """Trains the unit from its newest checkpoint on; whether it reached its end.

    Raises:
      SettingError, CheckpointError, NonFiniteError: as ``training.train`` does.
    """
    trainer, workdir, runs = trainer_of(unit), folder / unit.name, list(unit.runs)
    if jax.process_count() > 1:  # each writes what is its own
        workdir = workdir / f"process{jax.process_index()}"
        each = len(runs) // jax.process_count()
        runs = runs[jax.process_index() * each :][:each]
    numbers = [run.number for run in runs]
    return training.train(trainer, workdir, lambda step: UnitReporter(workdir, unit.config, numbers, step), should_stop)


def trainer_of(unit: Unit) -> Trainer:
    """The unit's trainer, on all devices of all processes if there are several; nothing is compiled yet.

    Raises:
      SettingError: if it cannot be.
    """
    if unit.members is None:
        return make_trainer(unit.config)
    return DeviceTrainer(unit.config, unit.members, jax.devices()[: _devices_for(len(unit.members))])


def _devices_for(members: int) -> int:
    """All devices, or as many as divide the members if they are few and of one process."""
    count = len(jax.devices())
    if jax.process_count() == 1:
        count = max(divisor for divisor in range(1, count + 1) if members % divisor == 0)
    return count


class UnitReporter:
    """Reports the runs of a unit, each row with the number of its run, into metrics.csv and to the terminal."""

    def __init__(self, workdir: pathlib.Path, config: Config, numbers: Sequence[int], first_step: int):
        """Drops what an earlier attempt reported past ``first_step``, where this one goes on."""
        self._table = MetricsTable(workdir / "metrics.csv", first_step)
        self._terminal = Terminal(config.total_steps, len(numbers), first_step)
        self._numbers = numbers

    def message(self, text: str) -> None:
        """One line for the user."""
        self._terminal.message(text)

    def progress(self, step: int, info: Infos) -> None:
        """Moves the progress bar."""
        self._terminal.progress(step, {name: float(value.mean()) for name, value in info.items()})

    def evaluation(self, rows: list[Row]) -> None:
        """Appends to the table and the terminal."""
        self._table.append([{**row, "run": number} for row, number in zip(rows, self._numbers, strict=True)])
        self._terminal.evaluation(rows)

    def close(self) -> None:
        """Ends the progress bar."""
        self._terminal.close()


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
