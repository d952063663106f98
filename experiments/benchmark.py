"""Compares PreQN with TD3 and SAC (the paper's Figure 2): ``python -m experiments.benchmark --preset=evening``.

Every run is a separate process, with as many parallel processes as cores. The same command resumes an interrupted
benchmark. ``--out`` receives the work directory and log of each run, and the report on all runs: learning_curves.png,
summary.csv, report.md and returns.npz.
"""

from __future__ import annotations

from absl import flags

from experiments.suites import overestimation, program, suite
from experiments.suites.program import Extent
from preqn_jax.agents import AGENTS
from preqn_jax.cli import command_line, lists

PRESETS = {  # "paper" has the tasks and seeds of the paper, which does not state the length of its runs
    "paper": Extent(("halfcheetah", "hopper", "walker2d", "swimmer", "ant"), tuple(range(7)), 1_000_000),
    "evening": Extent(("halfcheetah", "swimmer", "hopper"), (0, 1, 2), 100_000),
    "smoke": Extent(("swimmer",), (0, 1), 10_000),
}

_PRESET = flags.DEFINE_string("preset", "evening", f"default tasks, seeds and steps; allowed: {', '.join(PRESETS)}")
_ALGOS = flags.DEFINE_list("algos", "preqn,td3,sac", f"agents; allowed: {', '.join(AGENTS)}")


def main() -> int:
    """Runs all unfinished runs, then reports on all runs; returns the exit code."""
    if stored := program.stored_cells(()):
        return program.report_on_stored("benchmark", "Benchmark", stored, overestimation.write)
    lists.check_names("--preset", [_PRESET.value], list(PRESETS))
    lists.check_names("--algos", _ALGOS.value, list(AGENTS))
    extent = program.read_extent(PRESETS[_PRESET.value])
    variants = [_variant(algo, extent.envs[0]) for algo in _ALGOS.value]
    # Seed by seed, so that all agents have about the same number of runs whenever the suite is stopped.
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for seed in extent.seeds for env in extent.envs for variant in variants]  # fmt: skip
    return program.run("benchmark", "Benchmark", jobs, overestimation.write)


def _variant(algo: str, task: str) -> suite.Variant:
    """The variant of an algorithm, named after the algorithm and its activation: ``preqn-sin``."""
    variant = suite.Variant(algo, algo, program.overrides())
    return variant._replace(name=f"{algo}-{variant.config(task).agent.activation}")


if __name__ == "__main__":
    command_line.run(main)
