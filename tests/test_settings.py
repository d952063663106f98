import dataclasses
import json

import numpy as np
import pytest

from preqn_jax import settings
from preqn_jax.agents import AGENTS
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from preqn_jax.training import presets
from preqn_jax.training.config import Config, check_config


def config(**changes):
    return Config(agent=PreQNConfig(), env=EnvConfig(), **changes)


def leaf(path):
    return next(leaf for leaf in settings.leaves(config()) if leaf.path == path)


def test_the_defaults_are_valid():
    check_config(config())


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("agent.min_alignment", "0.9", 0.9),
        ("agent.hidden_sizes", "64,64,32", (64, 64, 32)),
        ("agent.hidden_sizes", "(64,)", (64,)),
        ("agent.activation", "relu", "relu"),
        ("total_steps", "100_000", 100_000),
        ("total_steps", "1e5", 100_000),
        ("env.kwargs", '{"size": 5, "range": [0.2, 1]}', {"size": 5, "range": (0.2, 1)}),
    ],
)
def test_parse(path, text, value):
    assert settings.parse(leaf(path), text) == value


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("agent.min_alignment", "high"),
        ("total_steps", "1.5"),
        ("seed", "x"),
        ("agent.hidden_sizes", "64,wide"),
        ("env.kwargs", "5"),
        ("env.kwargs", "size=5"),
    ],
)
def test_text_of_the_wrong_type_is_refused_by_name(path, text):
    with pytest.raises(SettingError, match=rf"config\.{path}={text}"):
        settings.parse(leaf(path), text)


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("agent.min_alignment", 0.0, r"\(0, 1\]"),
        ("agent.min_alignment", 1.01, r"\(0, 1\]"),
        ("agent.min_alignment", float("nan"), r"\(0, 1\]"),
        ("agent.gamma", -0.1, r"\[0, 1\]"),
        ("agent.step_size", 0.0, r"\(0, inf\)"),
        ("agent.hidden_sizes", (64, 0), r"\[1, inf\)"),
        ("num_seeds", 0, r"\[1, inf\)"),
        ("agent.solver", "rigde", "did you mean ridge"),
        ("agent.activation", "sine", "did you mean sin"),
        ("batch_size", 2_000_000, "at most 1000000"),
        ("total_steps", 10_001, "nearest: 10000"),
        ("total_steps", 1_000, "raise total_steps to 5000"),
        ("evaluate_every", 1, "nearest: 50"),
        ("total_steps", "many", "is not a whole number"),
        ("total_steps", 1e6, "is not a whole number"),
        ("agent.gamma", None, r"is not a number; allowed: \[0, 1\]"),
        ("agent.hidden_sizes", [64], r"=\[64\] is not a tuple of int; allowed: \[1, inf\)"),
        ("agent.hidden_sizes", (), "at least one width"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line_that_says_what_is_allowed(path, value, allowed):
    with pytest.raises(SettingError, match=rf"config\.{path}.*{allowed}") as error:
        check_config(settings.replace(config(), path, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"automatic_temperature": True}, "automatic_temperature=true has no effect with config.agent.policy=determ"),
        ({"target_noise": 0.2, "policy": "gaussian"}, "target_noise=0.2 has no effect with .*policy=gaussian"),
        ({"num_critics": 3}, "config.batch_size=256 must be a multiple of config.agent.num_critics=3; nearest: 255"),
        ({"num_critics": 300}, "nearest: 300"),
        ({"solver": "aligned", "min_alignment": 0.99}, "min_predicted_alignment=0.985 is below .*: at least 0.99"),
        ({"hidden_sizes": (8, 1)}, "hidden_sizes=8,1 has a layer of one unit, .*critic_layer_norm=fixed; allowed: at"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    agent = AGENTS["preqn_norm"]
    with pytest.raises(SettingError, match=message):
        check_config(Config(agent=agent(**changes)))


def test_the_same_settings_are_accepted_where_they_fit():
    agent = AGENTS["preqn_norm"]
    check_config(Config(agent=agent(automatic_temperature=True, policy="gaussian")))
    check_config(Config(agent=agent(num_critics=3, split_minibatch=False)))


def test_bounds_that_belong_are_accepted():
    for path, value in [
        ("agent.min_alignment", 1.0),
        ("agent.gamma", 0.0),
        ("agent.gamma", 1.0),
        ("agent.max_backtracks", 0),
    ]:
        check_config(settings.replace(config(), path, value))


@pytest.mark.parametrize("name", AGENTS)
def test_every_field_says_what_it_means_and_what_it_may_be(name):
    for leaf in settings.leaves(Config(agent=AGENTS[name]())):
        own_name = leaf.path.rpartition(".")[2].split("_")
        assert len(set(leaf.rule.help.lower().split()) - set(own_name)) >= 3, leaf.path
        if leaf.type in (int, float, tuple[int, ...]):
            assert leaf.rule.interval, leaf.path
        if leaf.type is str and leaf.path != "env.id":
            assert leaf.value in leaf.rule.choices, leaf.path
        allowed = leaf.rule.interval or ", ".join(leaf.rule.choices or ())
        assert settings.describe(leaf) == leaf.rule.help + (f"; allowed: {allowed}" if allowed else "")


def test_replace_changes_one_field_and_nothing_else():
    changed = settings.replace(config(), "agent.min_alignment", 0.5)
    assert changed.agent.min_alignment == 0.5
    assert settings.replace(changed, "agent.min_alignment", 0.97) == config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.seed = 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("0.5", 0.5), ("true", True), ("False", False), ("None", None), ("plain text", "plain text"),
     ('"5"', "5"), ("[0.2, 1]", (0.2, 1)), ('{"a": [1]}', {"a": (1,)})],
)  # fmt: skip
def test_options_have_values_of_their_own_types(text, value):
    field = settings.find(config(), "env.kwargs.some_name")
    parsed = settings.parse(field, text)
    assert (parsed, type(parsed)) == (value, type(value) if not isinstance(value, dict) else settings.Options)
    changed = settings.replace(config(), "env.kwargs.some_name", parsed)
    assert changed.env.kwargs == {"some_name": value}
    assert hash(changed) == hash(dataclasses.replace(changed))
    assert settings.find(changed, "env.kwargs.some_name").value == value
    check_config(changed)


@pytest.mark.parametrize("kind", [dict, settings.Options])
def test_options_are_spelled_as_they_are_parsed(kind):
    value = kind({"healthy_z_range": [0.2, 1], "name": "a"})
    parsed = settings.parse(settings.find(config(), "env.kwargs"), settings.spell(value))
    assert parsed == settings.Options(value)


@pytest.mark.parametrize(
    ("path", "value", "becomes"),
    [
        ("total_steps", 1e5, 100_000),
        ("total_steps", "1e5", 100_000),
        ("agent.hidden_sizes", [64, 32], (64, 32)),
        ("agent.hidden_sizes", "64,32", (64, 32)),
        ("env.kwargs.healthy_z_range", (0.2, 1), (0.2, 1)),
        ("env.kwargs.mode", "5", "5"),
        ("env.kwargs", {"size": [5]}, {"size": (5,)}),
    ],
)
def test_values_from_python_keep_their_types(path, value, becomes):
    changed = settings.assign(config(), path, value)
    found = settings.find(changed, path).value
    assert (found, type(found)) == (becomes, settings.Options if isinstance(becomes, dict) else type(becomes))
    check_config(changed)


def test_numbers_of_numpy_can_be_saved():
    changed = settings.assign(config(), "total_steps", np.int64(100_000))
    changed = settings.assign(changed, "agent.step_size", np.float32(0.5))
    check_config(changed)
    assert presets.from_dict(json.loads(json.dumps(presets.to_dict(changed)))) == changed


@pytest.mark.parametrize("changes", [{"agent": "preqn"}, {"agent": AGENTS["preqn"]}, {"env": "Hopper-v5"}])
def test_a_part_of_the_configuration_that_is_none_is_refused(changes):
    with pytest.raises(SettingError, match=r"is not supported; allowed: an instance of (Agent|Env)Config"):
        check_config(dataclasses.replace(config(), **changes))


def test_options_that_json_cannot_spell_are_refused():
    field = settings.find(config(), "env.kwargs.range")
    with pytest.raises(SettingError, match=r"config\.env\.kwargs\.range=\(0\.2,1\) is not a JSON value"):
        settings.parse(field, "(0.2,1)")
    with pytest.raises(SettingError, match=r"config\.env\.kwargs\.reward cannot be saved with the run"):
        check_config(settings.replace(config(), "env.kwargs.reward", len))


@pytest.mark.parametrize("path", ["env.kwargs.", "env.kwarg.size", "seed.size", ""])
def test_a_path_to_no_field_is_refused(path):
    with pytest.raises(SettingError, match="did you mean"):
        settings.find(config(), path)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("mjx", "kwargs"), ("playground", "kwargs"), ("brax", "reset_options"), ("mjx", "reset_options")],
)
def test_options_that_a_backend_does_not_use_are_refused(backend, name):
    changed = settings.replace(settings.replace(config(), "env.backend", backend), f"env.{name}.size", 5)
    with pytest.raises(SettingError, match=rf'config\.env\.{name}={{"size": 5}}.*backend={backend}'):
        check_config(changed)
