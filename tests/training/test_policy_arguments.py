"""What a policy accepts as an observation, and which arguments `train` refuses before it compiles anything."""

import re

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

import preqn_jax
from preqn_jax.agents.base import Agent
from preqn_jax.settings import SettingError
from preqn_jax.training import api
from preqn_jax.training.config import Config
from preqn_jax.training.policy import Policy
from preqn_jax.training.reporters import RunReporter

ARROW, CHOICE = Box(-1.0, 1.0, (2,)), Discrete(5)
PAIR = Dict({"b": CHOICE, "a": ARROW})
LIST = Tuple([ARROW, CHOICE])
TWO = np.array([0.5, -0.5], np.float32)


def policy(observations):
    """Its action is one half of each entry of the flattened observation."""
    agent = Agent(**dict.fromkeys(Agent._fields))._replace(act=lambda state, observation: observation / 2)
    actions = Box(-1.0, 1.0, (gymnasium.spaces.flatdim(observations),))
    return Policy(agent, None, observations, actions, 0)


@pytest.mark.parametrize(
    ("space", "observation", "flat"),
    [
        (ARROW, [0.5, -0.5], [0.5, -0.5]),
        (CHOICE, 3, [0, 0, 0, 1, 0]),
        (CHOICE, np.array(3), [0, 0, 0, 1, 0]),
        (CHOICE, jnp.asarray(3), [0, 0, 0, 1, 0]),
        (MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (PAIR, {"b": np.int64(4), "a": TWO}, [0.5, -0.5, 0, 0, 0, 0, 1]),
        (LIST, (TWO, 0), [0.5, -0.5, 1, 0, 0, 0, 0]),
    ],
)
def test_an_observation_of_any_space_is_flattened_as_by_gymnasium(space, observation, flat):
    np.testing.assert_allclose(policy(space)(observation), np.array(flat) / 2)


@pytest.mark.parametrize(
    ("space", "observation", "says"),
    [
        (CHOICE, np.array([0, 3, 1]), "of shape (3,) and type int64: [0, 3, 1]; its space is Discrete(5); batches are "
         "allowed for Box spaces only"),
        (CHOICE, 5, "this policy cannot take an observation 5; its space is Discrete(5)"),
        (CHOICE, 3.0, "an observation 3.0; its space is Discrete(5)"),
        (CHOICE, "north", "an observation 'north'; its space is Discrete(5)"),
        (MultiDiscrete([2, 3]), np.array([0, 3]), "[0, 3]; its space is MultiDiscrete"),
        (PAIR, {"a": TWO}, "of type dict with the keys 'a'; its space is of type Dict"),
        (PAIR, TWO, "an observation of shape (2,)"),
        (PAIR, {"a": np.zeros(3), "b": 1}, "an observation with 'a': of shape (3,)"),
        (PAIR, {"a": TWO, "b": 7}, "an observation with 'b': 7; its space is Discrete(5)"),
        (PAIR, {"a": np.zeros((4, 2)), "b": np.arange(4)}, "batches are allowed for Box spaces only"),
        (PAIR, [{"a": TWO, "b": 1}] * 2, "batches are allowed for Box spaces only"),
        (LIST, (TWO,), "its space is Tuple"),
        (LIST, (TWO, 5), "an observation with 1: 5; its space is Discrete(5)"),
        (LIST, TWO, "an observation of shape (2,)"),
        (ARROW, {"a": TWO}, "observation must be an array of numbers, got dict ("),
        (ARROW, [[1.0], [1.0, 2.0]], "observation must be an array of numbers, got list ("),
    ],
)  # fmt: skip
def test_an_observation_that_is_not_of_the_space_is_refused_in_one_line(space, observation, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        policy(space)(observation)
    assert "\n" not in str(error.value)


def test_an_exported_policy_takes_a_dict_in_the_order_of_its_space(tmp_path):
    policy(PAIR).export(tmp_path / "policy.bin")
    program = jax.export.deserialize(bytearray((tmp_path / "policy.bin").read_bytes()))
    observation = {"b": 1, "a": TWO}
    flat = np.concatenate([gymnasium.spaces.flatten(PAIR[key], observation[key]) for key in PAIR])
    assert list(PAIR) == ["a", "b"]
    np.testing.assert_allclose(program.call(jnp.float32(flat[None]))[0], policy(PAIR)(observation))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"config": None}, "config=None is not supported; allowed: a name such as 'preqn_hopper', or a Config"),
        ({"config": Config}, "config=<class"),
        ({"config": {"agent": "preqn"}}, "config={'agent': 'preqn'} is not supported"),
        ({"workdir": None}, "workdir=None is not supported; allowed: a path, such as 'runs/mine'"),
        ({"reporters": None}, "reporters=None is not supported; allowed: a tuple of functions"),
        ({"reporters": "wandb"}, "reporters='wandb' is not supported"),
        ({"reporters": ["wandb"]}, "reporters=['wandb'] is not supported"),
        ({"reporters": RunReporter}, "reporters=<class"),
        ({"should_stop": True}, "should_stop=True is not supported; allowed: a function"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_in_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "make_trainer", lambda config: pytest.fail("made a trainer"))
    with pytest.raises(SettingError, match=re.escape(says)) as error:
        preqn_jax.train(**{"config": "preqn_hopper", "workdir": tmp_path / "run", **arguments})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
