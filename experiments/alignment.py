"""Does an update move Q towards its targets? (the paper's Figures 3 and 10 to 14): ``python -m experiments.alignment``.

Measures cos(Q' - Q, y - Q) of every critic update of PreQN and TD3, each with sin and relu. y is the target of the
update, which is bootstrapped from the critic itself for PreQN and from the target networks for TD3. ``--out`` receives
the report on returns, alignment.csv, and one figure for each figure of the paper.

Additional ``--variants`` address two more questions of the paper's section 5.2: PreQN with relu and a smaller step
(``--variants=preqn-relu-step0.03,preqn-relu-step0.01``), and TD3 with sin and faster target networks
(``--variants=td3-sin-polyak0.98,td3-sin-polyak0.95``). With ``--stored`` nothing is run: the figures show the metrics
of earlier runs.
"""

from __future__ import annotations

from absl import flags

from experiments.suites import alignment, program, suite
from experiments.suites.alignment import PAPER, VARIANTS
from experiments.suites.program import Extent
from preqn_jax.cli import command_line, lists

DEFAULT = Extent(("halfcheetah", "walker2d"), (0, 1, 2), 50_000)

_VARIANTS = flags.DEFINE_list("variants", list(PAPER), f"variants to run; allowed: {', '.join(VARIANTS)}")


def main() -> int:
    """Runs all unfinished runs, then reports on all runs; returns the exit code."""
    if stored := program.stored_cells(list(VARIANTS), "update_alignment"):
        print(alignment.write_stored(stored, program.folder_of_stored("alignment")))
        return 0
    lists.check_names("--variants", _VARIANTS.value, list(VARIANTS))
    extent, overrides = program.read_extent(DEFAULT), program.overrides(alignment.MEASURING)
    variants = [VARIANTS[name] for name in _VARIANTS.value]
    variants = [variant._replace(overrides=(*variant.overrides, *overrides)) for variant in variants]
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for seed in extent.seeds for env in extent.envs for variant in variants]  # fmt: skip
    return program.run("alignment", "Alignment", jobs, lambda cells, folder: alignment.write(jobs, folder))


if __name__ == "__main__":
    command_line.run(main)
