import csv
import dataclasses
import re
import types

import pytest

from preqn_jax.cli.sweeps import plan as sweep_plan
from preqn_jax.cli.sweeps import report
from preqn_jax.cli.sweeps import unit as sweep_unit
from preqn_jax.cli.sweeps.plan import Axis
from preqn_jax.cli.sweeps.unit import UnitReporter, record_divergence
from preqn_jax.settings import SettingError
from preqn_jax.training import presets, workdir
from preqn_jax.types import NonFiniteError

HOST = presets.get_config("preqn_hopper")
DEVICE = dataclasses.replace(HOST, env=dataclasses.replace(HOST.env, backend="mjx"))

GRID = ("agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.97")


def units(config, *grid, seeds=(0, 1), per_unit=100):
    axes = sweep_plan.parse_axes(config, grid)
    runs = sweep_plan.runs_of(axes, seeds)
    return sweep_plan.units_of(config, runs, lambda config, count: per_unit)


def test_a_grid_is_every_combination_with_every_seed():
    (unit,) = units(DEVICE, "agent.min_alignment=0.9,0.97", "agent.step_size=0.03,0.1,0.3")
    assert [run.number for run in unit.runs] == list(range(12))
    assert len({(*run.point.values(), run.seed) for run in unit.runs}) == 12
    for run, member in zip(unit.runs, unit.members, strict=True):
        assert member.seed == run.seed
        assert member.hyperparameters == {
            "min_alignment": run.point["agent.min_alignment"],
            "step_size": run.point["agent.step_size"],
        }


def test_what_one_program_cannot_hold_makes_several():
    found = units(DEVICE, "agent.activation=sin,relu", "agent.hidden_sizes=64,64;32", "agent.gamma=0.98,0.99")
    common = [(unit.config.agent.activation, unit.config.agent.hidden_sizes) for unit in found]
    assert common == [("sin", (64, 64)), ("sin", (32,)), ("relu", (64, 64)), ("relu", (32,))]
    assert all(len(unit.members) == 4 for unit in found)
    assert found[0].members[0].hyperparameters == {"gamma": 0.98}


def test_chunks_are_as_even_as_they_can_be():
    assert [len(unit.members) for unit in units(DEVICE, seeds=tuple(range(10)), per_unit=4)] == [4, 4, 2]
    assert [len(unit.members) for unit in units(DEVICE, seeds=tuple(range(10)), per_unit=9)] == [5, 5]


@pytest.mark.parametrize(
    ("members", "largest", "devices", "sizes"),
    [
        (97, 100, 8, [96, 1]),
        (97, 60, 8, [48, 48, 1]),
        (50, 50, 8, [48, 2]),
        (9, 5, 4, [4, 4, 1]),
        (3, 8, 8, [3]),
        (10, 3, 8, [3, 3, 3, 1]),
        (16, 16, 8, [16]),
    ],
)
def test_chunks_are_spread_over_all_devices(members, largest, devices, sizes):
    assert sweep_plan.chunk_sizes(members, largest, devices) == sizes


def test_a_sweep_goes_on_with_the_chunks_it_was_planned_in(tmp_path):
    grid = ("agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.97")
    plan = units(DEVICE, *grid, per_unit=3)
    sweep_plan.write(plan, tmp_path)
    longer = dataclasses.replace(DEVICE, total_steps=2_000_000)

    def resumed(config, grid=grid, seeds=tuple(range(2))):
        runs = sweep_plan.runs_of(sweep_plan.parse_axes(config, grid), seeds)
        return sweep_plan.resume(tmp_path, config, runs)

    assert [unit.runs for unit in resumed(longer)] == [unit.runs for unit in plan]  # whatever fits the memory now
    assert {unit.steps for unit in resumed(longer)} == {2_000_000}
    assert sweep_plan.resume(tmp_path / "elsewhere", DEVICE, plan[0].runs) is None


@pytest.mark.parametrize(
    ("config", "grid", "seeds", "message"),
    [
        (DEVICE, GRID, (0, 1, 2), "with --seeds=0,1, not --seeds=0,1,2; choose another --out, or give --seeds=0,1 to"),
        (DEVICE, GRID[:1], (0, 1), "with --grid agent.min_alignment=0.9,0.97, which this command lacks; choose another "
                                   "--out, or add it to resume"),
        (DEVICE, (*GRID, "batch_size=64,128"), (0, 1), "without --grid batch_size=64,128; choose another --out, or "
                                                       "leave it out to resume that sweep"),
        (DEVICE, (GRID[0], "agent.gamma=0.9"), (0, 1), "with --grid agent.min_alignment=0.9,0.97, not --grid "
                                                       "agent.gamma=0.9; choose"),
        (DEVICE, ("agent.hidden_sizes=64,64;", GRID[1]), (0, 1),
         "with --grid 'agent.hidden_sizes=64,64;32', not --grid 'agent.hidden_sizes=64,64;'; choose another --out, or "
         "give --grid 'agent.hidden_sizes=64,64;32' to resume that sweep"),
        (DEVICE, GRID[::-1], (0, 1), "in the order agent.hidden_sizes, agent.min_alignment, not in the order "
                                     "agent.min_alignment, agent.hidden_sizes"),
        (dataclasses.replace(DEVICE, batch_size=64), GRID, (0, 1),
         "with --config.batch_size=256, not --config.batch_size=64; choose another --out, or give "
         "--config.batch_size=256 to resume that sweep"),
        (HOST, GRID, (0, 1), "with --config.env.backend=mjx, not --config.env.backend=gymnasium"),
        (presets.get_config("preqn_norm_hopper"), GRID, (0, 1), "with the agent preqn, not preqn_norm"),
    ],
)  # fmt: skip
def test_another_sweep_in_a_directory_is_refused_by_its_first_difference(config, grid, seeds, message, tmp_path):
    sweep_plan.write(units(DEVICE, *GRID), tmp_path)
    runs = sweep_plan.runs_of(sweep_plan.parse_axes(config, grid), seeds)
    with pytest.raises(SettingError, match=re.escape(message)) as raised:
        sweep_plan.resume(tmp_path, config, runs)
    assert str(raised.value).startswith(f"--out={tmp_path} holds a sweep ")
    assert str(raised.value).endswith(" to resume that sweep")


def test_a_list_argument_of_the_environment_is_spelled_as_on_the_command_line(tmp_path):
    sweep_plan.write(units(HOST, "env.kwargs.healthy_z_range=[0.1,1];[0.2,1]"), tmp_path)
    message = "with --grid 'env.kwargs.healthy_z_range=[0.1, 1];[0.2, 1]', not --grid 'env.kwargs.healthy_z_range=[0.3"
    with pytest.raises(SettingError, match=re.escape(message)):
        sweep_plan.write(units(HOST, "env.kwargs.healthy_z_range=[0.3,1];"), tmp_path)


def test_a_sweep_with_the_same_runs_goes_on_whatever_its_base_values_are(tmp_path):
    plan = units(DEVICE, "agent.min_alignment=0.9,0.97", seeds=(3, 4))
    sweep_plan.write(plan, tmp_path)
    agent = dataclasses.replace(DEVICE.agent, min_alignment=0.5)  # replaced by the grid, as the seed is by --seeds
    runs = plan[0].runs
    assert sweep_plan.resume(tmp_path, dataclasses.replace(DEVICE, agent=agent, seed=3), runs) == plan


def test_on_the_host_each_run_is_a_unit_of_its_own():
    found = units(HOST, "agent.min_alignment=0.9,0.97", seeds=(3, 5))
    assert [(unit.config.agent.min_alignment, unit.config.seed) for unit in found] == [
        (0.9, 3),
        (0.9, 5),
        (0.97, 3),
        (0.97, 5),
    ]
    assert all(unit.members is None and unit.config.num_seeds == 1 for unit in found)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("agent.min_alignement=0.9", "--grid field=agent.min_alignement is unknown; did you mean agent.min_alignment?"),
        ("agent.min_alignment=0.9,high", "config.agent.min_alignment=high is not a number"),
        ("agent.min_alignment=0.9,1.9", "config.agent.min_alignment=1.9 is out of range"),
        ("agent.min_alignment=", "needs distinct values"),
        ("agent.min_alignment=0.9,0.9", "needs distinct values"),
        ("agent.hidden_sizes=64;64", "needs distinct values, for example --grid 'agent.hidden_sizes=64,64;256,256'"),
        (
            "agent.hidden_sizes=64,128",
            "agent.hidden_sizes=64,128 is a single list; separate lists by semicolons, in quotes: --grid "
            "'agent.hidden_sizes=64;128', or --grid 'agent.hidden_sizes=64,128;' for this list alone",
        ),
        (
            "agent.hidden_sizes=8,8",
            "in quotes: --grid 'agent.hidden_sizes=64,64;256,256', or --grid 'agent.hidden_sizes=8,8;'",
        ),
        (
            "agent.hidden_sizes=[64,64],[32,32]",
            "separate lists by semicolons, in quotes: --grid 'agent.hidden_sizes=64,64;256,256'",
        ),
        (
            "env.kwargs.healthy_z_range=[0.1,1],[0.2,1]",
            "separate lists by semicolons, in quotes: --grid 'env.kwargs.healthy_z_range=[0.2,1];[0.5,1]'",
        ),
        ("seed=1,2", "seed cannot be varied by the grid"),
        ("update_every=50,70", "config.total_steps=1000000 must be a multiple"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        units(DEVICE, grid)


def test_a_field_named_twice_is_refused():
    with pytest.raises(SettingError, match="twice"):
        sweep_plan.parse_axes(DEVICE, ["agent.min_alignment=0.9", "agent.min_alignment=0.97"])


def test_a_plan_survives_its_file_and_other_values_are_refused(tmp_path):
    plan = units(DEVICE, "agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.97")
    sweep_plan.write(plan, tmp_path)
    assert sweep_plan.read(tmp_path) == plan
    longer = dataclasses.replace(DEVICE, total_steps=2_000_000)
    sweep_plan.write(units(longer, "agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.97"), tmp_path)
    assert sweep_plan.read(tmp_path)[0].steps == 2_000_000
    with pytest.raises(
        SettingError, match=r"agent\.min_alignment=0\.9,0\.97, not --grid agent\.min_alignment=0\.9,0\.98"
    ):
        sweep_plan.write(units(DEVICE, "agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.98"), tmp_path)
    with pytest.raises(SettingError, match="holds this sweep in other chunks; choose another --out"):
        sweep_plan.write(units(DEVICE, *GRID, per_unit=2), tmp_path)
    (tmp_path / sweep_plan.PLAN).write_text((tmp_path / sweep_plan.PLAN).read_text().replace('"ridge"', '"bridge"'))
    with pytest.raises(SettingError, match="did you mean ridge"):
        sweep_plan.read(tmp_path)
    (tmp_path / sweep_plan.PLAN).write_text("[{")
    with pytest.raises(SettingError, match="is not the directory of a sweep"):
        sweep_plan.read(tmp_path)


def test_the_report_counts_runs_that_were_stopped_and_leaves_them_out_of_the_means(tmp_path):
    config = dataclasses.replace(DEVICE, total_steps=100, update_after=100)
    grid = ["agent.min_alignment=0.9,0.97,0.99"]
    axes = sweep_plan.parse_axes(config, grid)
    plan = sweep_plan.units_of(config, sweep_plan.runs_of(axes, (0, 1)), lambda config, count: 6)
    (unit,) = plan
    workdir.claim(tmp_path / unit.name, unit.config).close()
    reporter = UnitReporter(tmp_path / unit.name, unit.config, range(6), 0)
    for member in (1, 2, 3):
        reporter.event({"event": "stopped", "step": 50, "seed": member % 2, "member": member, "reason": "q is gone"})
    row = lambda seed, value: {"step": 100, "seed": seed, "return_mean": value}  # noqa: E731
    reporter.evaluation([row(0, 5.0), None, None, None, row(0, 7.0), row(1, 9.0)])
    reporter.close()
    text = report.write(plan, axes, tmp_path)
    assert "| 0.9 | 1 of 2 | 5.0 |" in text
    assert "| 0.99 | 2 | 8.0 |" in text
    assert text.splitlines()[-3:] == [
        "stopped: run 1 (agent.min_alignment=0.9, seed 1): q is gone; the means exclude it",
        "stopped: run 2 (agent.min_alignment=0.97, seed 0): q is gone; the means exclude it",
        "stopped: run 3 (agent.min_alignment=0.97, seed 1): q is gone; the means exclude it",
    ]
    summary = list(csv.DictReader((tmp_path / "summary.csv").open()))
    counts = [(row["agent.min_alignment"], row["seeds"], row["stopped"]) for row in summary]
    assert counts == [("0.9", "1", "1"), ("0.99", "2", "0"), ("0.97", "0", "2")]


def finish(folder, unit, value):
    """What a unit with one run leaves when it has trained to its end."""
    workdir.claim(folder / unit.name, unit.config).close()
    reporter = UnitReporter(folder / unit.name, unit.config, [unit.runs[0].number], 0)
    reporter.evaluation([{"step": unit.steps, "seed": unit.config.seed, "return_mean": value}])
    reporter.close()


def test_the_report_counts_runs_without_results_of_every_kind(tmp_path):
    config, grid = dataclasses.replace(HOST, total_steps=100, update_after=100), ["agent.min_alignment=0.9,0.97"]
    plan, axes = units(config, *grid, seeds=(0, 1, 2)), sweep_plan.parse_axes(config, grid)
    finish(tmp_path, plan[0], 5.0)
    workdir.claim(tmp_path / plan[1].name, plan[1].config).close()
    record_divergence(tmp_path / plan[1].name, plan[1].runs, 50, "q is gone")
    failed = {plan[1].name: "error: q is gone", plan[2].name: "error: no room"}
    text = report.write(plan, axes, tmp_path, failed)
    assert "| 0.9 | 1 of 3 | 5.0 |" in text
    assert text.splitlines()[-3:] == [
        "stopped: run 1 (agent.min_alignment=0.9, seed 1): q is gone; the means exclude it",
        "failed: run 2 (agent.min_alignment=0.9, seed 2): error: no room; the means exclude it",
        "unfinished: 3 of 6 runs; the means exclude them, and the same command resumes them",
    ]
    rows = list(csv.DictReader((tmp_path / "summary.csv").open()))
    names = ("agent.min_alignment", "seeds", "final_mean", "stopped", "failed", "unfinished")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("0.9", "1", "5", "1", "1", "0"),
        ("0.97", "0", "", "0", "0", "3"),
    ]


def test_returns_of_different_environments_are_not_ranked_against_each_other(tmp_path, monkeypatch):
    config, grid = dataclasses.replace(HOST, total_steps=100, update_after=100), ["env.id=Reacher-v5,Hopper-v5"]
    plan, axes = units(config, *grid, seeds=(0, 1)), sweep_plan.parse_axes(config, grid)
    for unit, value in zip(plan, (-5.0, -7.0, 8.0, 9.0), strict=True):
        finish(tmp_path, unit, value)
    figures = []
    monkeypatch.setattr(report.plots, "curves", lambda panels, *rest: figures.append(panels))
    report.write(plan, axes, tmp_path)
    (panels,) = figures
    assert {name: list(lines) for name, lines in panels.items()} == {
        "Hopper-v5": ["id Hopper-v5"],
        "Reacher-v5": ["id Reacher-v5"],
    }


def test_one_run_has_no_interval_and_several_have(tmp_path):
    config = dataclasses.replace(HOST, total_steps=100, update_after=100)
    for seeds, row in (((0,), "| 1 | 5.0 |  |"), ((0, 1), "| 2 | 5.5 | 5.0 to 6.0 |")):
        plan = units(config, seeds=seeds)
        for unit, value in zip(plan, (5.0, 6.0), strict=False):
            finish(tmp_path / str(len(seeds)), unit, value)
        assert row in report.write(plan, [], tmp_path / str(len(seeds)))


def test_a_summary_is_written_even_if_every_run_diverged(tmp_path):
    (unit,) = plan = units(dataclasses.replace(HOST, total_steps=100, update_after=100), seeds=(7,))
    workdir.claim(tmp_path / unit.name, unit.config).close()
    record_divergence(tmp_path / unit.name, unit.runs, 50, "q is gone")
    assert report.write(plan, [], tmp_path).splitlines() == [
        "no run has finished yet: there are no means to report",
        "stopped: run 0 (seed 7): q is gone; the means exclude it",
    ]
    (row,) = csv.DictReader((tmp_path / "summary.csv").open())
    assert (row["seeds"], row["stopped"]) == ("0", "1")


def test_a_run_that_diverges_alone_is_recorded_once_and_forgotten_by_the_next_attempt(tmp_path, monkeypatch):
    (unit,) = units(dataclasses.replace(HOST, total_steps=100, update_after=100), seeds=(7,))
    monkeypatch.setattr(sweep_unit, "trainer_of", lambda unit: types.SimpleNamespace(step=50, config=unit.config))

    def diverge(trainer, folder, *rest):
        workdir.claim(folder, trainer.config).close()
        raise NonFiniteError("q is gone")

    monkeypatch.setattr(sweep_unit.session, "train", diverge)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="q is gone"):
            sweep_unit.run(unit, tmp_path)
    (event,) = workdir.read_json(tmp_path / unit.name / "config.json")["events"]
    assert event == {"event": "stopped", "step": 50, "seed": 7, "run": 0, "reason": "q is gone"}
    UnitReporter(tmp_path / unit.name, unit.config, [0], 0).close()  # resumes from a checkpoint before step 50
    assert report.stopped([unit], tmp_path) == {}


def test_an_axis_has_the_type_of_its_field():
    assert sweep_plan.parse_axes(HOST, ["agent.max_backtracks=5,1e1"]) == [Axis("agent.max_backtracks", (5, 10))]


def test_a_grid_may_vary_an_argument_of_the_environment(tmp_path):
    texts = ["env.kwargs.healthy_z_range=[0.1,1];[0.2,1]", "env.kwargs.frame_skip=2,4"]
    plan = units(HOST, *texts, seeds=tuple(range(1)))
    assert [unit.config.env.kwargs for unit in plan] == [
        {"healthy_z_range": (low, 1), "frame_skip": skip} for low in (0.1, 0.2) for skip in (2, 4)
    ]
    sweep_plan.write(plan, tmp_path)
    assert sweep_plan.read(tmp_path) == plan
