"""MuJoCo Playground's interface, by a registry like its own: the package itself is not needed here."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.config import EnvConfig
from preqn_jax.envs import device
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
