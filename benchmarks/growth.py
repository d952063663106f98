"""How the cost of an update grows with minibatch, width and depth: ``python -m benchmarks.growth``.

Time and memory of whole updates, critic and actor, of PreQN with the kernel layer by layer, of PreQN with the kernel
from per-example gradients (the reference) and of SAC, and the Gram matrix alone, for every minibatch and width at depth
2 and for every depth at the smallest width. Each size is saved as soon as it is measured, and the same command resumes
after an interruption. The result is a table (growth.md) and a figure (growth.png). For numbers to quote, run it on an
otherwise idle core, which the program takes itself with ``--core``:

    python -m benchmarks.growth --core=0
"""

from __future__ import annotations

import sys
import time

import jax
from absl import flags

from benchmarks import machine
from benchmarks.cells import BATCH_SIZES, DEPTHS, WIDTHS, Cell, cells, document, draw, measure_cell
from benchmarks.stored import Store
from preqn_jax.cli import command_line, compilation
from preqn_jax.training import memory, provenance
from preqn_jax.training.files import replace_file
from preqn_jax.training.progress import message, track

_OUT = flags.DEFINE_string("out", "runs/growth", "directory for the results, one JSON file per size")
_MAX_BATCH_SIZE = flags.DEFINE_integer(
    "max-batch-size", BATCH_SIZES[-1], "largest minibatch [transitions]", lower_bound=BATCH_SIZES[0]
)
_MAX_WIDTH = flags.DEFINE_integer("max-width", WIDTHS[-1], "largest width [units]", lower_bound=WIDTHS[0])
_MAX_DEPTH = flags.DEFINE_integer("max-depth", DEPTHS[-1], "largest number of hidden layers", lower_bound=DEPTHS[0])
_REPEATS = flags.DEFINE_integer("repeats", 5, "rounds that a median is taken over", lower_bound=1)
_CORE = flags.DEFINE_integer(
    "core", None, "number of a core to run on, with one thread; by default all cores", lower_bound=0
)


def main() -> int:
    """Measures what is missing, prints and saves; returns the exit code."""
    if _CORE.value is not None:
        machine.use_one_core(_CORE.value)
    store = Store("--out", _OUT.value, {"repeats": _REPEATS.value})
    compilation.keep()
    print(f"device {provenance.device()}, JAX {jax.__version__}, medians of {_REPEATS.value} interleaved rounds")
    chosen = cells(_MAX_BATCH_SIZE.value, _MAX_WIDTH.value, _MAX_DEPTH.value)
    missing = {cell.name: cell for cell in chosen if not store.has(cell.name)}
    if len(missing) < len(chosen):
        print(f"{len(chosen) - len(missing)} of {len(chosen)} sizes are in {store.folder} already")
    start = time.perf_counter()
    for name in track(list(missing), str, "size"):
        section = measure_cell(missing[name], _REPEATS.value, memory.of_devices(jax.local_devices()[0]))
        store.save(name, section)
        message(str(section), sys.stdout)
    found: dict[Cell, dict[str, object]] = {cell: store.load(cell.name) for cell in chosen}
    replace_file(store.folder / "growth.md", document(found))
    draw(found, store.folder / "growth.png")
    print(f"\n{document(found)}\n{time.perf_counter() - start:.0f} s; saved {store.folder}/growth.md and growth.png")
    return 0


if __name__ == "__main__":
    command_line.run(main)
