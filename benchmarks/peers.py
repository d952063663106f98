"""Compares a step of training with the same step of SBX's algorithms: ``python -m benchmarks.peers``.

A step is an environment step with its action, and one gradient step. SBX (``pip install '.[examples]'``, or ``make
peers``) and this library are measured in turns in one process, which the program itself restricts to one core and one
thread. The table is printed, and saved in a JSON file and a Markdown file of the same name.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import jax
from absl import flags

from benchmarks import machine
from benchmarks.steps import OURS, PEERS, Setting, of_sbx, ours, peer_name
from benchmarks.timing import Ratio, Section, Timing, measure_against, numbers, relative_table, table
from preqn_jax.cli import command_line, lists
from preqn_jax.envs import host
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError, first_line
from preqn_jax.training import provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import Progress
from preqn_jax.training.tables import to_markdown

_OURS = flags.DEFINE_list("ours", ",".join(OURS), f"agents of this library; allowed: {', '.join(OURS)}")
_PEERS = flags.DEFINE_list("peers", ",".join(PEERS), f"algorithms of SBX; allowed: {', '.join(PEERS)}")
_EVERY = flags.DEFINE_list(
    "peer-update-every",
    "1,50",
    "environment steps between updates of SBX's algorithms, each a row of the table; 1 is SBX's default, and this "
    "library's schedule is 50 [environment steps]",
)
_ENV = flags.DEFINE_string("env", "HalfCheetah-v5", "Gymnasium id of an environment with continuous actions")
_BATCH_SIZE = flags.DEFINE_integer("batch-size", 256, "minibatch size B [transitions]", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 100, "length of each timed run [environment steps]", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 7, "number of rounds over which medians are taken", lower_bound=1)
_CORE = flags.DEFINE_integer("core", None, "index of the core to run on (default: the last one)", lower_bound=0)
_OUT = flags.DEFINE_string("out", "runs/benchmark_peers.json", "JSON file for the numbers; the table is saved as .md")

_SCHEDULE = 50  # environment steps per iteration of this library's agents
_INSTALL = "make .venv-examples/installed installs it, and make peers runs this program there"
_METHOD = """\
Each value is the median over {repeats} rounds; every round runs all candidates once, in rotating order, for {steps}
steps each. A ratio compares times of the same round. This library's agents make {schedule} gradient steps after every
{schedule} environment steps. SBX's TD3 and DDPG act without noise; CrossQ keeps its own network sizes, all others have
[256, 256].
"""


def main() -> int:
    """Measures, prints and saves; returns the exit code."""
    every, out = _check_flags(), machine.output_file("--out", _OUT.value)
    machine.use_one_core(_CORE.value)
    sbx = _import_sbx()
    host.make(EnvConfig(_ENV.value), [0])  # raises SettingError if the environment cannot be created
    print(_METHOD.format(repeats=_REPEATS.value, steps=_STEPS.value, schedule=_SCHEDULE))
    threads = machine.threads()
    where = ", ".join(f"{name} {value}" for name, value in threads.items())
    print(f"device {provenance.device()}, JAX {jax.__version__}, SBX {machine.version('sbx-rl')}; {where}")
    section, document = _measure(every, sbx)
    print(section)
    record = {
        "settings": {flag.name: flag.value for flag in (_OURS, _PEERS, _EVERY, _ENV, _BATCH_SIZE, _STEPS, _REPEATS)},
        "sbx-rl": machine.version("sbx-rl"),
        "threads": threads,
    }
    machine.save(out, record, [section])
    replace_file(out.with_suffix(".md"), document)
    print(f"\nsaved {out} and {out.with_suffix('.md')}")
    return 0


def _check_flags() -> list[int]:
    """The values of --peer-update-every; raises SettingError if any flag has an invalid value."""
    lists.check_names("--ours", _OURS.value, list(OURS))
    lists.check_names("--peers", _PEERS.value, list(PEERS))
    texts = _EVERY.value
    if not texts or not all(text.isdecimal() and int(text) for text in texts) or len(set(texts)) < len(texts):
        raise SettingError(
            f"--peer-update-every={','.join(texts)} must be distinct numbers of at least 1, for example 1,50"
        )
    every = [int(text) for text in texts]
    unit = math.lcm(_SCHEDULE, *every)
    if _STEPS.value % unit:
        nearest = max(unit, round(_STEPS.value / unit) * unit)
        raise SettingError(f"--steps={_STEPS.value} must be a multiple of {unit}; nearest: {nearest}")
    return every


def _import_sbx() -> ModuleType:
    try:
        return importlib.import_module("sbx")
    except ImportError as error:
        raise SettingError(f"SBX is missing ({first_line(error)}); {_INSTALL}") from None


def _measure(every: list[int], sbx: ModuleType) -> tuple[Section, str]:
    """The table as text and in Markdown."""
    setting = Setting(_ENV.value, _BATCH_SIZE.value, _STEPS.value)
    rounds = (len(_OURS.value) + len(_PEERS.value) * len(every)) * (1 + _REPEATS.value)
    bar = Progress(rounds, "run")
    candidates = []
    for name in _OURS.value:
        candidates.append(_with_progress(bar, name, lambda name=name: ours(name, setting)))
    for name in _PEERS.value:
        for period in every:
            make = lambda name=name, period=period: of_sbx(name, setting, period, sbx)  # noqa: E731
            candidates.append(_with_progress(bar, peer_name(name, period), make))
    bar.describe("measuring")
    references = ["sac" if "sac" in _OURS.value else _OURS.value[0], peer_name(_PEERS.value[0], every[0])]
    timings, ratios = measure_against(candidates, _REPEATS.value, references, after_run=bar.advance)
    bar.close()
    lines = table(timings)
    for reference in references:
        lines += ["", f"relative to {reference} in the same round", *relative_table(ratios[reference])]
    relative = {reference: {name: ratio._asdict() for name, ratio in of.items()} for reference, of in ratios.items()}
    title = f"One step of training on {setting.env}, B = {setting.batch_size}"
    return Section(title, lines, {**numbers(timings), "relative": relative}), _document(timings, ratios)


def _with_progress(bar: Progress, name: str, make: Any) -> Any:
    """Makes a candidate and shows its name."""
    bar.describe(f"compiling {name}")
    candidate = make()
    bar.advance()
    return candidate


def _document(timings: dict[str, Timing], ratios: dict[str, dict[str, Ratio]]) -> str:
    """The table in Markdown: medians, in brackets quartiles."""
    rows = []
    for name, timing in timings.items():
        row = [
            name,
            f"{timing.ms:.2f} ({timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f})",
            f"{timing.cpu_ms:.2f}",
        ]
        for of in ratios.values():
            low, high = of[name].quartiles
            row.append(f"{of[name].clock:.2f} ({low:.2f} to {high:.2f})")
        rows.append(row)
    columns = ["", "ms per step", "processor ms", *(f"relative to {reference}" for reference in ratios)]
    return "\n".join([*to_markdown(columns, rows), ""])


if __name__ == "__main__":
    command_line.run(main)
