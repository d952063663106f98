"""The programs that run a suite, as a person starts them on a folder where all runs are there already."""

import json

import numpy as np
import pytest

from experiments.suites.suite import work_folder
from preqn_jax.training import presets, workdir
from tests.programs import assert_refused, execute

pytestmark = pytest.mark.slow

STEPS = 300
SHORT = (f"--steps={STEPS}", "--set=update_after=100")
MEASURE = ("measure_alignment=true", "record_updates=true")


def finished(folder, name, config, seed, *overrides):
    """What a run of three evaluations leaves, with one update before each."""
    run = folder / work_folder(name, config.rpartition("_")[2], seed)
    settings = presets.get_config(config)
    for override in (f"seed={seed}", f"total_steps={STEPS}", "update_after=100", *overrides):
        settings = presets.override(settings, override)
    workdir.claim(run, settings).close()
    rows = [f"{step},{seed},{step + seed},9,8,0.5" for step in range(100, STEPS + 1, 100)]
    header = "step,seed,return_mean,first_q,discounted_return,action_abs"
    (run / "metrics.csv").write_text("\n".join([header, *rows, ""]))
    (run / "updates").mkdir()
    update = {"step": np.full((1, 1), STEPS), "update_alignment": np.full((1, 1), 0.98), "accepted": np.ones((1, 1))}
    np.savez(run / "updates" / "1.npz", **update)


def test_benchmark_reports_its_preset_beside_published_returns(tmp_path):
    for algo in ("preqn", "td3", "sac"):
        for seed in (0, 1):
            activation = "sin" if algo == "preqn" else "relu"
            finished(tmp_path / "out", f"{algo}-{activation}", f"{algo}_swimmer", seed)
    (tmp_path / "out" / "suite.json").write_text('{"kind": "benchmark"}')
    arguments = ("--preset=smoke", *SHORT, "--out=out")
    code, output, errors = execute("benchmark", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert "6 of 6 runs are complete, 0 remain" in errors
    assert "6 of 6 runs finished, made with: device cpu (cpu)" in output
    assert "| Swimmer-v5 | preqn-sin | 2 | 300 | 200.5 [200.0, 201.0] | 300.5 |" in output
    assert "| swimmer v3 | published: TD3 |  | 1,000,000 | 78 |" in output
    assert "| preqn-sin than td3-relu | 0.50" in output
    assert "| sac-relu | swimmer | 2 | 300 | 200.5 | 9 | 9 | 8 | 0.5 |" in output
    assert json.loads((tmp_path / "out" / "suite.json").read_text())["options"]["runs"][0] == "preqn-sin_swimmer_seed0"

    code, _, errors = execute("benchmark", *arguments, "--set=agent.gamma=0.9", cwd=tmp_path)
    assert code == 2
    assert "holds a run with config.agent.gamma=0.99, not 0.9; choose another --out" in errors


ABLATIONS = {
    "paper": (),
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


def test_ablation_changes_one_field_at_a_time(tmp_path):
    for name, overrides in ABLATIONS.items():
        finished(tmp_path / "out", name, "preqn_hopper", 0, *overrides)
    (tmp_path / "out" / "suite.json").write_text('{"kind": "ablation"}')
    arguments = ("--envs=hopper", "--seeds=0", *SHORT, "--out=out")
    code, output, errors = execute("ablation", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert f"{len(ABLATIONS)} of {len(ABLATIONS)} runs are complete" in errors
    assert "| eta0.9 | hopper | 1 | 300 | 200 | 9 | 9 | 8 | 0.5 |" in output


def test_the_agents_parts_are_changed_one_at_a_time(tmp_path):
    finished(tmp_path / "out", "preqn_norm", "preqn_norm_hopper", 10)
    finished(tmp_path / "out", "adam", "preqn_norm_hopper", 10, "agent.critic_update=adam")
    normalized = ("critic_layer_norm=fixed", "normalize_observations=true", "observation_tail=2")
    finished(tmp_path / "out", "sac_normalized", "sac_hopper", 10, *(f"agent.{field}" for field in normalized))
    (tmp_path / "out" / "suite.json").write_text('{"kind": "agent_study"}')
    which = ("--preset=final", "--variants=preqn_norm,adam,sac_normalized", "--envs=hopper", "--seeds=10")
    code, output, errors = execute("agent_study", *which, *SHORT, "--out=out", cwd=tmp_path)
    assert code == 0, errors
    assert "3 of 3 runs are complete" in errors
    assert "| sac_normalized | hopper | 1 | 300 | 210 | 9 | 9 | 8 | 0.5 |" in output


def store(folder, *runs):
    """Writes metrics of the runs (variant, task, seed) into ``folder``."""
    folder.mkdir()
    for variant, task, seed in runs:
        rows = [f"{step},{seed},{step + seed},9,8,0.5" for step in (100, 200, 300)]
        text = "\n".join(["step,seed,return_mean,first_q,discounted_return,action_abs", *rows, ""])
        (folder / f"{variant}_{task}_seed{seed}.csv").write_text(text)


@pytest.mark.parametrize("module", ["agent_study", "benchmark", "ablation"])
def test_stored_runs_are_reported_without_running_anything(module, tmp_path):
    store(tmp_path / "stored", ("sac", "hopper", 10), ("sac", "hopper", 11))
    code, output, errors = execute(module, "--stored=stored", "--out=out", cwd=tmp_path)
    assert code == 0, errors
    assert "Stored runs: 2; their versions are stated where they are stored." in output
    assert "| Hopper-v5 | sac | 2 | 300 | 210.5 [210.0, 211.0] | 310.5 |" in output
    assert "| sac | hopper | 2 | 300 | 210.5 | 9 | 9 | 8 | 0.5 |" in output
    assert (tmp_path / "out" / "learning_curves.png").exists()
    code, output, errors = execute(module, "--stored=stored", "--seeds=0", cwd=tmp_path)
    assert (code, errors) == (2, "error: --seeds applies to new runs and cannot be used with --stored=stored\n")


def test_some_of_the_stored_runs_are_selected(tmp_path):
    hopper = [(variant, "hopper", seed) for variant in ("sac", "td3") for seed in (10, 11)]
    store(tmp_path / "stored", *hopper, ("sac", "ant", 10), ("td3", "swimmer", 10))
    which = ("--stored=stored", "--variants=sac", "--envs=hopper")
    code, output, errors = execute("agent_study", *which, "--out=out", cwd=tmp_path)
    assert code == 0, errors
    assert "Stored runs: 2" in output
    assert "| Hopper-v5 | sac | 2 | 300 |" in output
    code, output, errors = execute("agent_study", *which[:2], "--envs=swimmer", cwd=tmp_path)
    assert (code, errors) == (2, "error: --envs=swimmer is unknown; did you mean hopper? (allowed: ant, hopper)\n")


def test_alignment_reads_every_update(tmp_path):
    finished(tmp_path / "out", "preqn-sin", "preqn_hopper", 0, *MEASURE)
    (tmp_path / "out" / "suite.json").write_text('{"kind": "alignment"}')
    arguments = ("--variants=preqn-sin", "--envs=hopper", "--seeds=0", *SHORT, "--out=out")
    code, output, errors = execute("alignment", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert "| preqn-sin | hopper | 1 | 1 | 0.9800 |  | 0.980000 | 0.0000 | 0 | 1.000000 |" in output


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("benchmark", ["--preset=evenning"], "did you mean evening"),
        ("benchmark", ["--algos="], "--algos is empty"),
        ("benchmark", ["--envs=swimer"], "did you mean swimmer"),
        ("benchmark", ["--envs=cartpole"], "--envs=cartpole has discrete actions, which preqn does not support"),
        ("benchmark", ["--set=env.id=Ant-v4"], "this field cannot be overridden"),
        ("ablation", ["--variants=step0.3"], "did you mean step0.03"),
        ("agent_study", ["--variants=preqn_nrm"], "did you mean preqn_norm"),
        ("ablation", ["--seeds="], "--seeds="),
        ("ablation", ["--out=occupied"], "is not the directory of a suite"),
        ("alignment", ["--set=measure_alignment=false"], "does not allow overrides of measure_alignment"),
    ],
)
def test_a_mistake_ends_with_one_line_and_exit_code_2(tmp_path, module, arguments, says):
    assert_refused(module, arguments, says, tmp_path)
