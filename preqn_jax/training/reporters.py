"""Reporters of a run's metrics: metrics.csv, TensorBoard, learning curve, terminal and Weights & Biases."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from preqn_jax.settings import SettingError, first_line
from preqn_jax.training import plots
from preqn_jax.training.config import Config
from preqn_jax.training.files import replace_file
from preqn_jax.training.presets import CONFIG_FILE, to_dict
from preqn_jax.training.progress import Progress, message, time_left
from preqn_jax.training.tables import to_csv

Row = dict[str, float]


class RunReporter:
    """Writes the metrics of a run to its work directory and to the terminal."""

    def __init__(self, workdir: pathlib.Path, config: Config, first_step: int):
        """Opens the files; removes what an earlier attempt reported after ``first_step``, where this run resumes."""
        self._table = MetricsTable(workdir / "metrics.csv", first_step)
        self._events = EventsRecord(workdir, first_step)
        self._curve = workdir / "learning_curve.png"
        self._title = workdir.name
        self._board = Board(workdir / "tensorboard", first_step)
        self._terminal = Terminal(config.total_steps, config.num_seeds, first_step)
        self._attempt = Attempts(self._terminal.message)
        self._updates = UpdatesRecord(workdir / "updates", first_step) if config.record_updates else None
        self._table.warn_of_gaps(config.evaluate_every, first_step, self.message)

    def message(self, text: str) -> None:
        """Prints one line to the terminal."""
        self._terminal.message(text)

    def event(self, event: dict[str, Any]) -> None:
        """Stores the event in config.json."""
        self._events.add(event)
        self._attempt("config.json", self._events.write)

    def progress(self, step: int, info: dict[str, np.ndarray]) -> None:
        """Advances the progress bar; stores the metrics of each update if ``record_updates`` is set."""
        self._terminal.progress(step, means(info))
        if self._updates and info:
            self._updates.add(step, info)

    def checkpoint(self) -> None:
        """Writes the metrics of the updates, since a run that resumes from the checkpoint does not repeat them."""
        if self._updates:
            self._attempt("updates", self._updates.write)

    def evaluation(self, rows: list[Row | None]) -> None:
        """Writes the rows to the table, TensorBoard and the terminal, and redraws the learning curve."""
        left = [row for row in rows if row is not None]
        self._table.append(left)
        self._attempt("metrics.csv", self._table.write)
        step = int(left[0]["step"])
        for row in left:
            scalars = {name: value for name, value in row.items() if name not in ("step", "seed")}
            self._board.add(step, {f"seed_{row['seed']}/{name}": value for name, value in scalars.items()})
        self._board.add(step, {"steps_per_second": self._terminal.steps_per_second})
        self._attempt("TensorBoard's events", self._board.write)
        self._terminal.evaluation(left)
        draw = functools.partial(plots.learning_curve, [self._table.path], self._curve, self._title)
        self._attempt("learning_curve.png", draw)

    def close(self) -> None:
        """Closes the progress bar and writes everything that is still buffered."""
        self._terminal.close()
        self.checkpoint()
        self._board.close()


class Reporters:
    """Forwards every call to several reporters."""

    def __init__(self, reporters: Sequence[Any]):
        self._reporters = tuple(reporters)

    def message(self, text: str) -> None:
        """Forwards the call to each reporter."""
        self._tell("message", text)

    def event(self, event: dict[str, Any]) -> None:
        """Forwards the call to each reporter."""
        self._tell("event", event)

    def progress(self, step: int, info: dict[str, np.ndarray]) -> None:
        """Forwards the call to each reporter."""
        self._tell("progress", step, info)

    def checkpoint(self) -> None:
        """Forwards the call to each reporter."""
        self._tell("checkpoint")

    def evaluation(self, rows: list[Row | None]) -> None:
        """Forwards the call to each reporter."""
        self._tell("evaluation", rows)

    def close(self) -> None:
        """Closes each reporter."""
        self._tell("close")

    def _tell(self, method: str, *arguments: Any) -> None:
        for reporter in self._reporters:
            getattr(reporter, method)(*arguments)


def check_wandb() -> None:
    """Raises SettingError if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise SettingError("reporting to Weights & Biases needs wandb; pip install 'preqn_jax[wandb]'")


class WandbReporter:
    """Logs evaluations to Weights & Biases; a resumed run continues the same W&B run. Needs ``preqn_jax[wandb]``.

    Pass ``functools.partial(WandbReporter, project="mine")`` in the ``reporters`` of :func:`preqn_jax.train`.
    """

    def __init__(self, workdir: pathlib.Path, config: Config, first_step: int, **options: Any):
        """Starts or resumes the run.

        Args:
          workdir: work directory of the run; wandb_id.txt in it stores the id of the W&B run.
          config: configuration of the run.
          first_step: environment step at which the run begins or resumes.
          **options: arguments of ``wandb.init``: project, entity, mode and others.

        Raises:
          SettingError: if wandb is not installed.
        """
        check_wandb()
        import wandb

        record = workdir / "wandb_id.txt"
        if not record.exists():
            replace_file(record, uuid.uuid4().hex)
        defaults = {"name": workdir.name, "dir": str(workdir), "id": record.read_text(), "resume": "allow"}
        self._run = wandb.init(**{**defaults, "config": to_dict(config), **options})
        self._run.define_metric("*", step_metric="step")

    def message(self, text: str) -> None:
        """Does nothing; messages are shown in the terminal only."""

    def event(self, event: dict[str, Any]) -> None:
        """Stores the event in the summary of the W&B run."""
        of_seed = f"_seed_{event['seed']}" if "seed" in event else ""
        self._run.summary[f"event_{event['step']}{of_seed}"] = event

    def progress(self, step: int, info: dict[str, np.ndarray]) -> None:
        """Does nothing; averages of these metrics are part of the next evaluation."""

    def checkpoint(self) -> None:
        """Does nothing."""

    def evaluation(self, rows: list[Row | None]) -> None:
        """Logs seed_<seed>/<metric> against the environment step."""
        for row in rows:
            if row is not None:
                scalars = {f"seed_{row['seed']}/{name}": value for name, value in row.items() if name != "seed"}
                self._run.log({"step": row["step"], **scalars})

    def close(self) -> None:
        """Finishes the W&B run."""
        self._run.finish()


class Attempts:
    """Runs optional writes: a failure causes one warning, which is repeated only after a write has succeeded again."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._failing: set[str] = set()

    def __call__(self, what: str, write: Callable[[], Any]) -> None:
        """Calls ``write``; ``what`` describes it in the warning."""
        try:
            write()
        except Exception as error:  # a full disk, matplotlib without fonts: any exception type
            if what not in self._failing:
                self._say(f"warning: {what} could not be written ({first_line(error)}); the run continues")
            self._failing.add(what)
        else:
            self._failing.discard(what)


class Board:
    """Writes TensorBoard event files.

    It replaces tensorboardX's SummaryWriter, whose writer thread fails silently and then blocks for ever.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Marks everything that an earlier attempt reported after ``first_step`` as to be discarded by TensorBoard."""
        start = SessionLog(status=SessionLog.START)
        self._folder, self._files = folder, 0
        self._events = [Event(wall_time=time.time(), step=first_step + 1, session_log=start)]  # not written yet
        self._writer: EventsWriter | None = None

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Buffers scalars by tag; NaN and infinite values, such as means over nothing, are omitted."""
        for tag, value in scalars.items():
            if np.isfinite(value):
                self._events.append(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def write(self) -> None:
        """Writes the buffered scalars; after a failure, the next call writes them again to a new file."""
        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            self._files += 1
            self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
        writer, self._writer = self._writer, None
        for event in self._events:
            writer.write_event(event)
        writer.flush()
        self._writer, self._events = writer, []

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def means(info: dict[str, np.ndarray]) -> Row:
    """Means of metrics ``[S, U]`` over updates and over the seeds that were not stopped."""
    left = {name: value[~np.isnan(value)] for name, value in info.items()}
    return {name: float(value.mean()) for name, value in left.items() if value.size}


class EventsRecord:
    """The list ``events`` in a run's config.json: events that matter for the use of its results, in order."""

    def __init__(self, workdir: pathlib.Path, first_step: int):
        """Keeps the events up to ``first_step``."""
        self._path = workdir / CONFIG_FILE
        self._content = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._events = [event for event in self._content.get("events", []) if event["step"] <= first_step]
        if self._events != self._content.get("events", []):
            self.write()

    def add(self, event: dict[str, Any]) -> None:
        """Appends an event."""
        self._events.append(event)

    def write(self) -> None:
        """Rewrites the file."""
        replace_file(self._path, json.dumps({**self._content, "events": self._events}, indent=2) + "\n")


class MetricsTable:
    """metrics.csv: one row per evaluation and seed, with fixed columns and no clock times; rows are always complete."""

    def __init__(self, path: pathlib.Path, first_step: int):
        """Reads an existing table and keeps its rows up to ``first_step``."""
        self.path = path
        self._text = path.read_text() if path.exists() else ""
        self._text = self._upto(first_step)
        if self._text.count("\n") < 2:
            self._text = ""

    def _upto(self, step: int) -> str:
        """The header and the complete rows up to a step."""
        complete = [line for line in self._text.splitlines(keepends=True) if line.endswith("\n")]
        return "".join(complete[:1] + [line for line in complete[1:] if int(line.split(",")[0]) <= step])

    def warn_of_gaps(self, interval: int, first_step: int, say: Callable[[str], None]) -> None:
        """Prints one line if the table lacks some of the evaluations that must have been written before a step.

        The evaluation of ``first_step`` itself may follow its checkpoint.
        """
        found = {int(line.split(",")[0]) for line in self._text.splitlines()[1:]}
        if lacking := [step for step in range(interval, first_step, interval) if step not in found]:
            say(f"warning: {self.path} lacks {len(lacking)} evaluation(s) before the checkpoint, the first of step "
                f"{lacking[0]}; they are not repeated")  # fmt: skip

    def append(self, rows: list[Row]) -> None:
        """Appends rows, in place of existing rows of the same step.

        Args:
          rows: rows with the same columns as the table.

        Raises:
          SettingError: if the table has other columns because another version of this library wrote it.
        """
        if self._text and self._text.partition("\n")[0].split(",") != list(rows[0]):
            raise SettingError(f"{self.path} has the columns of another version of preqn_jax; choose another --workdir")
        header = None if self._text else list(rows[0])
        values = [[value if isinstance(value, int) else float(value) for value in row.values()] for row in rows]
        self._text = self._upto(int(rows[0]["step"]) - 1) + to_csv(values, header, digits=8)

    def write(self) -> None:
        """Rewrites the file."""
        replace_file(self.path, self._text)


class UpdatesRecord:
    """updates/<step>.npz: metrics ``[S, updates]`` of each update since the previous file, and the ``step`` of each."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Removes existing files after ``first_step``."""
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.npz*"):
            if int(path.name.partition(".")[0]) > first_step:
                path.unlink()
        self._folder = folder
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, step: int, info: dict[str, np.ndarray]) -> None:
        """Buffers the metrics ``[S, U]`` of the gradient steps that followed environment step ``step``."""
        updates = next(iter(info.values())).shape[1]
        self._parts.append({"step": np.full((1, updates), step), **info})

    def write(self) -> None:
        """Writes the buffered metrics to a new file."""
        if not self._parts:
            return
        columns = {name: np.concatenate([part[name] for part in self._parts], axis=1) for name in self._parts[0]}
        path = self._folder / f"{columns['step'].max():09d}.npz"
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)
        partial.replace(path)
        self._parts = []


class Terminal:
    """A progress bar, or plain lines if stderr is not a terminal."""

    plain_interval = 10.0  # seconds between plain lines
    # Metrics of the agent that are shown, and their labels.
    _labels: ClassVar = {
        "alignment": "alignment",
        "step_size": "step size",
        "accepted": "accepted",
        "q": "Q",
        "td_error": "TD error",
        "entropy": "entropy",
    }

    def __init__(self, total_steps: int, num_seeds: int, first_step: int):
        self._total, self._num_seeds = total_steps, num_seeds
        self._step, self._return = first_step, np.nan
        self._mark = (time.perf_counter(), first_step)  # time and step from which the speed is measured
        self.steps_per_second = np.nan  # environment steps of all seeds together
        self._bar = Progress(total_steps, " steps", first_step)

    def message(self, text: str) -> None:
        """Prints one line, above the progress bar if there is one."""
        message(text)

    def progress(self, step: int, latest: Row) -> None:
        """Advances to ``step`` and shows the latest metrics."""
        moved, self._step = step - self._step, step
        seconds = time.perf_counter() - self._mark[0]
        due = seconds > self.plain_interval
        if due:
            self.steps_per_second = self._num_seeds * (step - self._mark[1]) / seconds
            self._mark = (time.perf_counter(), step)
        rates = {"return": f"{self._return:.1f}", "steps/s": f"{self.steps_per_second:.0f}"}
        shown = {name: text for name, text in rates.items() if text != "nan"}  # not measured yet
        shown |= {label: f"{latest[name]:.3g}" for name, label in self._labels.items() if name in latest}
        self._bar.advance(moved, shown)
        if due and not self._bar.visible:
            eta = time_left((self._total - step) * self._num_seeds / self.steps_per_second)
            self.message("  ".join([f"{step}/{self._total} steps", f"ETA {eta}", *map(" ".join, shown.items())]))

    def evaluation(self, rows: list[Row]) -> None:
        """Prints one line with the mean return, and that of each seed if there are several."""
        returns = np.array([row["return_mean"] for row in rows])
        self._return = returns.mean()
        each = [f"{int(row['seed'])}: {row['return_mean']:.1f}" for row in rows]
        spread = f" (seed {', '.join(each)})" if self._num_seeds > 1 else ""
        self.message(f"step {int(rows[0]['step'])}: return {self._return:.1f}{spread}")

    def close(self) -> None:
        """Closes the progress bar and leaves it visible."""
        self._bar.close()
