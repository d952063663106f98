"""Does Q move where it is told to? (the paper's Figures 3 and 10 to 14): ``python -m experiments.alignment``.

cos(Q' - Q, y - Q) of every critic update of PreQN and TD3, each with sin and relu, y being the target that the update
went towards: bootstrapped from the critic itself for PreQN, from the target networks for TD3. ``--out`` gets, besides
the report on returns, alignment.csv and alignment.png.
"""

from __future__ import annotations

from absl import flags

from experiments import alignment_report, suite, suite_program
from experiments import flags as command_line
from experiments.alignment_report import VARIANTS
from experiments.suite_program import Extent

DEFAULT = Extent(("halfcheetah", "walker2d"), (0, 1, 2), 50_000)

_VARIANTS = flags.DEFINE_list("variants", list(VARIANTS), f"what to run; allowed: {', '.join(VARIANTS)}")


def main() -> int:
    """Runs what is missing, then reports on all there is; returns the exit code."""
    suite.check_names("--variants", _VARIANTS.value, list(VARIANTS))
    extent, overrides = suite_program.read_extent(DEFAULT), suite_program.overrides(alignment_report.MEASURING)
    variants = [VARIANTS[name] for name in _VARIANTS.value]
    variants = [variant._replace(overrides=(*variant.overrides, *overrides)) for variant in variants]
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for seed in extent.seeds for env in extent.envs for variant in variants]  # fmt: skip
    return suite_program.run("alignment", "Alignment", jobs, alignment_report.write)


if __name__ == "__main__":
    command_line.run(main)
