"""Compares ``preqn_norm`` with other agents and with variants of itself: ``python -m experiments.agent_study``.

``--variants`` selects the runs: ``preqn_norm`` and the agents that it is compared with; ``preqn_norm`` with one part
changed; and controls that separate the contribution of the kernel from that of the normalization. ``--out`` receives
the report on returns, and the critics' Q estimates with the realized returns. With ``--stored`` nothing is run, and
the report is on the metrics of earlier runs, of which ``--variants`` and ``--envs`` select some.

    python -m experiments.agent_study --preset=development --variants=preqn_norm,adam,diagonal
    python -m experiments.agent_study --preset=final
"""

from __future__ import annotations

from absl import flags

from experiments.suites import overestimation, program, suite
from experiments.suites.program import Extent
from experiments.suites.suite import Variant
from preqn_jax.cli import command_line, lists

_NORMALIZED = ("agent.critic_layer_norm=fixed", "agent.normalize_observations=true", "agent.observation_tail=2")

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("preqn_norm", "preqn_norm"),
        Variant("sac", "sac"),
        Variant("td3", "td3"),
        Variant("preqn", "preqn"),
        # One part changed.
        Variant("raw_observations", "preqn_norm", ("agent.normalize_observations=false",)),
        Variant("standardized", "preqn_norm", ("agent.observation_tail=0",)),
        Variant("no_layer_norm", "preqn_norm", ("agent.critic_layer_norm=none",)),
        Variant("sin", "preqn_norm", ("agent.activation=sin",)),
        Variant("actor_layer_norm", "preqn_norm", ("agent.actor_layer_norm=fixed",)),
        Variant("one_critic", "preqn_norm", ("agent.num_critics=1",)),
        Variant("whole_minibatch", "preqn_norm", ("agent.split_minibatch=false",)),
        Variant("mean_target", "preqn_norm", ("agent.target_pessimism=0",)),
        Variant("delay1", "preqn_norm", ("agent.policy_delay=1",)),
        Variant("smooth", "preqn_norm", ("agent.target_noise=0.2",)),
        Variant("step0.03", "preqn_norm", ("agent.step_size=0.03",)),
        Variant("step0.3", "preqn_norm", ("agent.step_size=0.3",)),
        Variant("n_step3", "preqn_norm", ("n_step=3",)),
        Variant("actor3e-4", "preqn_norm", ("agent.actor_learning_rate=0.0003",)),
        Variant(
            "gaussian",
            "preqn_norm",
            ("agent.policy=gaussian", "agent.automatic_temperature=true", "agent.temperature=0.01"),
        ),
        # Controls.
        Variant("adam", "preqn_norm", ("agent.critic_update=adam",)),
        Variant("adam3e-4", "preqn_norm", ("agent.critic_update=adam", "agent.critic_learning_rate=0.0003")),
        Variant("adam3e-3", "preqn_norm", ("agent.critic_update=adam", "agent.critic_learning_rate=0.003")),
        Variant("adam_whole", "preqn_norm", ("agent.critic_update=adam", "agent.split_minibatch=false")),
        Variant("diagonal", "preqn_norm", ("agent.critic_update=diagonal", "agent.step_size=1")),
        Variant("diagonal3", "preqn_norm", ("agent.critic_update=diagonal", "agent.step_size=3")),
        Variant("diagonal10", "preqn_norm", ("agent.critic_update=diagonal", "agent.step_size=10")),
        Variant("sac_auto", "sac", ("agent.automatic_temperature=true",)),
        Variant("sac_normalized", "sac", _NORMALIZED),
        Variant("td3_normalized", "td3", _NORMALIZED),
    )
}

PRESETS = {  # no decision of the development used the seeds of "final"
    "development": Extent(("hopper", "halfcheetah", "ant"), (0, 1, 2), 100_000),
    "final": Extent(("hopper", "halfcheetah", "walker2d", "ant", "swimmer", "humanoid"), tuple(range(10, 15)), 100_000),
}

_TITLE = "Agents and variants"
_PRESET = flags.DEFINE_enum("preset", "development", list(PRESETS), "default tasks, seeds and steps")
_VARIANTS = flags.DEFINE_list(
    "variants", ["preqn_norm", "sac", "td3"], f"variants to run; allowed: {', '.join(VARIANTS)}"
)


def main() -> int:
    """Runs all unfinished runs, then reports on all runs; returns the exit code."""
    if stored := program.stored_cells(list(VARIANTS)):
        return program.report_on_stored("agent_study", _TITLE, stored, overestimation.write)
    lists.check_names("--variants", _VARIANTS.value, list(VARIANTS))
    extent = program.read_extent(PRESETS[_PRESET.value])
    chosen = [VARIANTS[name] for name in _VARIANTS.value]
    variants = [variant._replace(overrides=(*variant.overrides, *program.overrides())) for variant in chosen]
    # Seed by seed, so that all variants have about the same number of runs whenever the suite is stopped.
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for seed in extent.seeds for env in extent.envs for variant in variants]  # fmt: skip
    return program.run("agent_study", _TITLE, jobs, overestimation.write)


if __name__ == "__main__":
    command_line.run(main)
