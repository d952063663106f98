"""What the agent without target networks is made of, part by part: ``python -m experiments.agent_study``.

``--variants`` names what is run: ``preqn_norm`` as it is, and the agents that it is compared with; ``preqn_norm`` with
one part changed; and the controls, which say how much the kernel contributes and how much the normalization does.
``--out`` gets the report on returns, and the critics' estimates beside the realized returns.

    python -m experiments.agent_study --preset=development --variants=preqn_norm,adam,diagonal
    python -m experiments.agent_study --preset=final
"""

from __future__ import annotations

from absl import flags

from experiments.suites import overestimation, program, suite
from experiments.suites.program import Extent
from experiments.suites.suite import Variant
from preqn_jax.cli import command_line, lists

_NORMALIZED = ("agent.critic_layer_norm=fixed", "agent.normalize_observations=true", "agent.observation_moment=8")

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("preqn_norm", "preqn_norm"),
        Variant("sac", "sac"),
        Variant("td3", "td3"),
        Variant("preqn", "preqn"),
        # One part changed.
        Variant("raw_observations", "preqn_norm", ("agent.normalize_observations=false",)),
        Variant("moment2", "preqn_norm", ("agent.observation_moment=2",)),
        Variant("floor1", "preqn_norm", ("agent.observation_moment=2", "agent.observation_floor=1")),
        Variant("power0.5", "preqn_norm", ("agent.observation_moment=2", "agent.observation_power=0.5")),
        Variant("moment8_power0.5", "preqn_norm", ("agent.observation_power=0.5",)),
        Variant("no_layer_norm", "preqn_norm", ("agent.critic_layer_norm=none",)),
        Variant("sin", "preqn_norm", ("agent.activation=sin",)),
        Variant("actor_layer_norm", "preqn_norm", ("agent.actor_layer_norm=fixed",)),
        Variant("one_critic", "preqn_norm", ("agent.num_critics=1",)),
        Variant("whole_minibatch", "preqn_norm", ("agent.split_minibatch=false",)),
        Variant("mean_target", "preqn_norm", ("agent.target_pessimism=0",)),
        Variant("delay2", "preqn_norm", ("agent.policy_delay=2",)),
        Variant("smooth", "preqn_norm", ("agent.policy_delay=2", "agent.target_noise=0.2")),
        Variant("step0.03", "preqn_norm", ("agent.step_size=0.03",)),
        Variant("step0.3", "preqn_norm", ("agent.step_size=0.3",)),
        Variant("n_step3", "preqn_norm", ("n_step=3", "agent.step_size=0.03")),
        Variant("actor3e-4", "preqn_norm", ("agent.actor_learning_rate=0.0003",)),
        Variant(
            "gaussian",
            "preqn_norm",
            ("agent.policy=gaussian", "agent.automatic_temperature=true", "agent.temperature=0.01"),
        ),
        # Controls.
        Variant("adam", "preqn_norm", ("agent.critic_update=adam",)),
        Variant("diagonal", "preqn_norm", ("agent.critic_update=diagonal", "agent.step_size=1")),
        Variant("sac_normalized", "sac", _NORMALIZED),
        Variant("td3_normalized", "td3", _NORMALIZED),
    )
}

PRESETS = {  # the seeds of "final" have decided nothing
    "development": Extent(("hopper", "halfcheetah", "ant"), (0, 1, 2), 100_000),
    "final": Extent(("hopper", "halfcheetah", "walker2d", "ant", "swimmer", "humanoid"), tuple(range(10, 15)), 100_000),
}

_PRESET = flags.DEFINE_enum("preset", "development", list(PRESETS), "tasks, seeds and steps if left out")
_VARIANTS = flags.DEFINE_list("variants", ["preqn_norm", "sac", "td3"], f"what to run; allowed: {', '.join(VARIANTS)}")


def main() -> int:
    """Runs what is missing, then reports on all there is; returns the exit code."""
    lists.check_names("--variants", _VARIANTS.value, list(VARIANTS))
    extent = program.read_extent(PRESETS[_PRESET.value])
    chosen = [VARIANTS[name] for name in _VARIANTS.value]
    variants = [variant._replace(overrides=(*variant.overrides, *program.overrides())) for variant in chosen]
    # Seed by seed: whenever it is stopped, all that is compared has been run about equally often.
    jobs = [suite.Job(variant, env, seed, extent.steps)
            for seed in extent.seeds for env in extent.envs for variant in variants]  # fmt: skip
    return program.run("agent_study", "The agent and its parts", jobs, overestimation.write)


if __name__ == "__main__":
    command_line.run(main)
