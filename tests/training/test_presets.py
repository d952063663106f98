import json
import pathlib

import pytest

from experiments.configuration_reference import markdown
from preqn_jax.agents import AGENTS
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.training.config import check_config
from preqn_jax.training.workdir import check_same


@pytest.mark.parametrize("name", presets.names())
def test_every_name_is_a_configuration_that_a_run_can_write_and_read(name):
    config = presets.get_config(name)
    check_config(config)
    assert name.startswith(config.agent.name)
    envs = DISCRETE_ENVS if config.agent.discrete else ENVS
    assert config.env.id == envs[name.rpartition("_")[2]]
    assert type(config.agent) is AGENTS[config.agent.name]
    assert presets.from_dict(json.loads(json.dumps(presets.to_dict(config)))) == config


def test_tuned_names_differ_from_the_papers_where_they_say():
    tuned, paper = presets.get_config("preqn_tuned_halfcheetah"), presets.get_config("preqn_halfcheetah")
    assert (tuned.agent.step_size, paper.agent.step_size) == (0.03, 0.1)
    assert presets.override(paper, "agent.step_size=0.03") == tuned


def test_small_tasks_have_a_short_schedule():
    assert presets.get_config("dqn_cartpole").total_steps == 50_000
    assert presets.get_config("preqn_dqn_breakout").total_steps == presets.get_config("preqn_ant").total_steps


def test_the_page_on_configuration_is_that_of_the_code():
    page = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == markdown(), "python -m experiments.configuration_reference > docs/configuration.md"


@pytest.mark.parametrize("name", ["preqn_halfchetah", "preqn_tuned", "tuned_ant", "preqn_cartpole", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(SettingError, match="did you mean"):
        presets.get_config(name)


@pytest.mark.parametrize("assignment", ["agent.min_alignement=1", "agent=1", "", "agent.min_alignment=high"])
def test_unknown_fields_and_values_are_refused(assignment):
    with pytest.raises(SettingError):
        presets.override(presets.get_config("preqn_ant"), assignment)


RENAMED = {
    "critic_step_size": "step_size",
    "eta": "min_alignment",
    "backtrack_decay": "decay",
    "solver_damping": "damping",
    "solver_rcond": "rcond",
    "solver_target": "min_predicted_alignment",
}


@pytest.mark.parametrize("name", ["preqn_ant", "preqn_norm_ant", "preqn_dqn_cartpole"])
def test_an_old_name_of_a_field_is_refused_with_the_new_one(name):
    for old, new in RENAMED.items():
        with pytest.raises(SettingError, match=f"^field=agent.{old} has been renamed; use agent.{new}$"):
            presets.override(presets.get_config(name), f"agent.{old}=0.5")


def test_a_record_by_old_names_can_be_read():
    config = presets.override(presets.get_config("preqn_ant"), "agent.min_alignment=0.5")
    record = json.loads(json.dumps(presets.to_dict(config)))
    for old, new in RENAMED.items():
        record["agent"][old] = record["agent"].pop(new)
    assert presets.from_dict(record) == config


def test_options_of_the_environment_are_kept_with_the_run_and_a_run_without_them_can_be_read():
    config = presets.override(presets.get_config("preqn_ant"), "env.kwargs.healthy_z_range=[0.1, 1]")
    config = presets.override(config, "env.reset_options.goal=north")
    record = json.loads(json.dumps(presets.to_dict(config)))
    assert record["env"]["kwargs"] == {"healthy_z_range": [0.1, 1]}
    assert presets.from_dict(record) == config
    del record["env"]["kwargs"], record["env"]["reset_options"]
    assert presets.from_dict(record) == presets.get_config("preqn_ant")


def test_a_record_from_before_a_field_existed_is_read_as_what_the_run_did():
    config = presets.get_config("preqn_norm_hopper")
    record = json.loads(json.dumps(presets.to_dict(config)))
    del record["updates_per_step"], record["agent"]["observation_tail"]
    before = presets.override(config, "agent.observation_tail=0")
    assert presets.from_dict(record) == before
    del record["agent"]["gamma"]
    with pytest.raises(SettingError, match="no 'gamma': another version"):
        presets.from_dict(record)


@pytest.mark.parametrize("path", ["agent.mood", "mood", "env.mood", "agent.mood.size"])
def test_a_record_with_a_field_of_another_version_is_refused(path, tmp_path):
    config = presets.get_config("preqn_hopper")
    owner = record = json.loads(json.dumps(presets.to_dict(config)))
    *owners, name = path.split(".")
    for one in owners:
        owner = owner.setdefault(one, {})
    owner[name] = 1
    says = f"has the field {path.removesuffix('.size')}, which this version"
    with pytest.raises(SettingError, match=says):
        presets.from_dict(record)
    (tmp_path / presets.CONFIG_FILE).write_text(json.dumps({"config": record}))
    with pytest.raises(SettingError, match=says):
        check_same(tmp_path, config)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("agent.gamma", "0.9", r"config\.agent\.gamma='0\.9' is not a number; allowed: \[0, 1\]"),
        ("agent.gamma", 1.5, r"config\.agent\.gamma=1\.5 is out of range"),
        ("agent.activation", "sine", "did you mean sin"),
        ("agent.hidden_sizes", 256, "hidden_sizes=256 is not a tuple"),
        ("agent.hidden_sizes", [256, 0.5], "is not a tuple of int"),
        ("record_updates", 1, "record_updates=1 is not true or false"),
        ("total_steps", True, "total_steps=True is not a whole number"),
        ("env.kwargs", 3, "env.kwargs=3 is not a JSON object"),
        ("agent", 3, "has no 'agent'"),
        ("algorithm", ["sac"], "another version"),
    ],
)
def test_a_record_with_a_value_of_the_wrong_type_is_refused(path, value, says):
    owner = record = json.loads(json.dumps(presets.to_dict(presets.get_config("preqn_hopper"))))
    *owners, name = path.split(".")
    for one in owners:
        owner = owner[one]
    owner[name] = value
    with pytest.raises(SettingError, match=says):
        presets.from_dict(record)


def test_removed_fields_of_normalization_matter_only_to_runs_that_normalize():
    config = presets.get_config("sac_hopper")
    record = json.loads(json.dumps(presets.to_dict(config)))
    record["agent"] |= {"observation_moment": 2.0, "observation_power": 1.0}
    assert presets.from_dict(record) == config
    record["agent"]["normalize_observations"] = True
    with pytest.raises(SettingError, match="observation_moment, which this version"):
        presets.from_dict(record)
