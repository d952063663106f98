"""MuJoCo Playground's interface, by a registry like its own: the package itself is not needed here."""

import sys
import types

import brax.envs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.envs import device
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from tests.device_probes import Probe


class Options(dict):
    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


class Privileged(Probe):
    """Observes more than the policy may see."""

    def _observe(self, time, key):
        return {"state": super()._observe(time, key), "privileged_state": jnp.zeros(9)}


@pytest.fixture
def loaded(monkeypatch):
    """What the registry is asked to load."""
    asked = []
    registry = types.SimpleNamespace(
        ALL_ENVS=("CartpoleBalance", "CartpoleSwingup"),
        get_default_config=lambda name: Options(impl="warp", episode_length=7),
        load=lambda name, options: asked.append((name, options)) or Privileged(length=9),
    )
    monkeypatch.setitem(sys.modules, "mujoco_playground", types.SimpleNamespace(registry=registry))
    return asked


def test_a_playground_environment_runs_on_mjx_in_jax_for_its_own_time(loaded):
    env = device.make(EnvConfig("CartpoleBalance", "playground"))
    assert loaded == [("CartpoleBalance", {"impl": "jax", "episode_length": 7})]  # warp is for some devices alone
    assert (env.observation_size, env.action_size, env.time_limit) == (2, 1, 7)
    state = env.reset(jax.random.split(jax.random.key(0), 3))
    for _ in range(7):
        state, outcome = env.step(state, np.zeros((3, 1), np.float32))
    assert outcome.observation.shape == (3, 2)
    assert outcome.truncated.all()


def test_an_unknown_playground_environment_is_refused_with_the_nearest(loaded):
    with pytest.raises(SettingError, match="CartpoleBalanse is unknown; did you mean CartpoleBalance"):
        device.make(EnvConfig("CartpoleBalanse", "playground"))


class Misshapen(Probe):
    """Of whose states one entry has another shape than Brax's interface says."""

    def __init__(self, **change):
        super().__init__()
        self._change = change

    def reset(self, rng):
        return super().reset(rng)._replace(**self._change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"obs": jnp.zeros((2, 2))}, r"observations of shape \(2, 2\)"),
        ({"obs": jnp.zeros(0)}, r"observations of shape \(0,\)"),
        ({"obs": {"pixels": jnp.zeros(2)}}, "observations with the entries pixels"),
        ({"reward": jnp.zeros(1)}, r"a reward of shape \(1,\)"),
        ({"done": jnp.zeros(1)}, r"a done of shape \(1,\)"),
    ],
)
def test_an_environment_that_breaks_the_interface_is_refused_when_it_is_made(change, says, monkeypatch):
    monkeypatch.setitem(brax.envs._envs, "misshapen", lambda: Misshapen(**change))
    with pytest.raises(SettingError, match=rf"^config\.env\.id=misshapen: {says}"):
        device.make(EnvConfig("misshapen", "brax"))


def test_braxs_environments_are_given_their_constructors_arguments(monkeypatch):
    monkeypatch.setitem(brax.envs._envs, "probe", Probe)
    env = device.make(EnvConfig("probe", "brax", kwargs={"length": 4}))
    state = env.reset(jax.random.split(jax.random.key(0), 1))
    assert float(env.step(state, np.zeros((1, 1), np.float32))[0].observation[0, 0]) == 0.75
    with pytest.raises(SettingError, match=r"config\.env\.id=probe cannot be created with .*{\"lenght\": 4}.*lenght"):
        device.make(EnvConfig("probe", "brax", kwargs={"lenght": 4}))
