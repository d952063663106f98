"""Makes all measurements that need an accelerator: ``python -m benchmarks.accelerator``.

Precision of the kernel, updates, the sine, the MJX tasks and members of a population, in sizes that should take under
ten minutes on one GPU. Each section is saved as soon as it is measured, and the same command resumes after an
interruption. ``--quick`` runs everything with small sizes, on a CPU too, as a test of the program. Results to keep go
to docs/results/accelerator (``--out=docs/results/accelerator``).
"""

from __future__ import annotations

import sys
import time

import jax
from absl import flags

from benchmarks.device import QUICK, SECTIONS, Sizes
from benchmarks.stored import Store
from preqn_jax.cli import command_line, compilation, lists
from preqn_jax.envs import MJX_TASKS
from preqn_jax.training import provenance
from preqn_jax.training.progress import message, track

_OUT = flags.DEFINE_string("out", "runs/accelerator", "directory for the results, one JSON file per section")
_QUICK = flags.DEFINE_bool("quick", False, "small sizes, which show only that everything runs")
_SECTIONS = flags.DEFINE_list("sections", ",".join(SECTIONS), f"what to measure; allowed: {', '.join(SECTIONS)}")
_TASKS = flags.DEFINE_list("tasks", None, "MJX tasks, as Gymnasium ids; by default all, with --quick one")


def main() -> int:
    """Measures what is missing, prints and saves; returns the exit code."""
    lists.check_names("--sections", _SECTIONS.value, list(SECTIONS))
    sizes = QUICK if _QUICK.value else Sizes()
    if _TASKS.value is not None:
        lists.check_names("--tasks", _TASKS.value, list(MJX_TASKS))
        sizes = sizes._replace(tasks=tuple(_TASKS.value))
    store = Store("--out", _OUT.value, sizes._asdict())
    compilation.keep()
    heading = f"device {provenance.device()}, JAX {jax.__version__}, medians of {sizes.repeats} interleaved rounds"
    print(heading)
    missing = [name for name in _SECTIONS.value if not store.has(name)]
    if done := [name for name in _SECTIONS.value if name not in missing]:
        print(f"in {store.folder} already: {', '.join(done)}; delete a file to measure its section again")
    start = time.perf_counter()
    for name in track(missing, str, "section"):
        section = SECTIONS[name](sizes)
        store.save(name, section)
        message(str(section), sys.stdout)
    path = store.write_text("accelerator.txt", list(SECTIONS), heading)
    print(f"\n{time.perf_counter() - start:.0f} s; saved {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
