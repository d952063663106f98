"""Varies one hyperparameter of PreQN at a time: ``python -m experiments.ablation``.

The variants change the critic's step size, the solver and the minimum alignment around the paper's values, and two
settings that may determine whether the actor changes too fast for the critic: its learning rate and the initializer.
The most informative runs are run first: the paper's step size and the one that prototypes suggested, on every task.
``--out`` receives the report on returns, and the critics' Q estimates with the realized returns (overestimation.csv
and .png).
"""

from __future__ import annotations

from absl import flags

from experiments.suites import overestimation, program, suite
from experiments.suites.program import Extent
from preqn_jax.cli import command_line, lists

VARIANTS = {
    "paper": (),  # step size 0.1, ridge, min_alignment 0.97
    "step0.03": ("agent.step_size=0.03",),
    "step0.01": ("agent.step_size=0.01",),
    "aligned": ("agent.solver=aligned",),
    "lstsq": ("agent.solver=lstsq",),
    "eta0.9": ("agent.min_alignment=0.9",),
    "eta0.99": ("agent.min_alignment=0.99",),
    "actor1e-4": ("agent.actor_learning_rate=0.0001",),
    "tanh": ("agent.activation=tanh",),
    "torch_default": ("agent.kernel_init=torch_default",),
}
DEFAULT = Extent(("ant", "hopper", "halfcheetah"), (0, 1, 2), 100_000)

_VARIANTS = flags.DEFINE_list("variants", list(VARIANTS), f"variants to run; allowed: {', '.join(VARIANTS)}")


def main() -> int:
    """Runs all unfinished runs, then reports on all runs; returns the exit code."""
    if stored := program.stored_cells(list(VARIANTS)):
        return program.report_on_stored("ablation", "Ablation", stored, overestimation.write)
    lists.check_names("--variants", _VARIANTS.value, list(VARIANTS))
    extent = program.read_extent(DEFAULT)
    variants = [suite.Variant(name, "preqn", (*VARIANTS[name], *program.overrides())) for name in _VARIANTS.value]
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for part in (variants[:2], variants[2:])
            for seed in extent.seeds for variant in part for env in extent.envs]  # fmt: skip
    return program.run("ablation", "Ablation", jobs, overestimation.write)


if __name__ == "__main__":
    command_line.run(main)
