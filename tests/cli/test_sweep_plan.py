import csv
import dataclasses
import re

import pytest

from preqn_jax.cli.sweeps import plan as sweep_plan
from preqn_jax.cli.sweeps import report
from preqn_jax.cli.sweeps.plan import Axis
from preqn_jax.cli.sweeps.unit import UnitReporter
from preqn_jax.settings import SettingError
from preqn_jax.training import presets, workdir

HOST = presets.get_config("preqn_hopper")
DEVICE = dataclasses.replace(HOST, env=dataclasses.replace(HOST.env, backend="mjx"))


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
    assert resumed(DEVICE, seeds=tuple(range(3))) is None
    assert resumed(DEVICE, grid[:1]) is None
    assert resumed(dataclasses.replace(DEVICE, batch_size=64)) is None


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
    with pytest.raises(SettingError, match="over other values or seeds"):
        sweep_plan.write(units(DEVICE, "agent.hidden_sizes=64,64;32", "agent.min_alignment=0.9,0.98"), tmp_path)
    (tmp_path / sweep_plan.PLAN).write_text("[{")
    with pytest.raises(SettingError, match="is not the directory of a sweep"):
        sweep_plan.read(tmp_path)


def test_the_report_counts_runs_that_were_stopped_and_leaves_them_out_of_the_means(tmp_path):
    config = dataclasses.replace(DEVICE, total_steps=100)
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
    assert "| 0.9 | 1 | 5.0 |" in text
    assert "| 0.99 | 2 | 8.0 |" in text
    assert text.splitlines()[-3:] == [
        "stopped: run 1 (agent.min_alignment=0.9, seed 1): q is gone; the means exclude it",
        "stopped: run 2 (agent.min_alignment=0.97, seed 0): q is gone; the means exclude it",
        "stopped: run 3 (agent.min_alignment=0.97, seed 1): q is gone; the means exclude it",
    ]
    summary = list(csv.DictReader((tmp_path / "summary.csv").open()))
    counts = [(row["agent.min_alignment"], row["seeds"], row["stopped"]) for row in summary]
    assert counts == [("0.9", "1", "1"), ("0.99", "2", "0"), ("0.97", "0", "2")]


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
