"""Training from Python, the policy that it leaves, and the program that the policy is exported as."""

import json
import pathlib
import subprocess
import sys
import warnings

import gymnasium
import jax
import numpy as np
import pytest

import preqn_jax
from preqn_jax.agents import AGENTS
from preqn_jax.agents.base import Agent
from preqn_jax.envs.config import EnvConfig
from preqn_jax.envs.host import HostEnv
from preqn_jax.settings import SettingError
from preqn_jax.training import session
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer, Member
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.policy import Policy, _in_units
from preqn_jax.training.reporters import Reporters, RunReporter
from tests import probes  # noqa: F401  (registers the probes)

pytestmark = pytest.mark.slow

QUICK = {"total_steps": 200, "start_steps": 50, "update_after": 50, "update_every": 10, "batch_size": 16,
         "replay_capacity": 200, "evaluate_every": 200, "evaluate_episodes": 1, "checkpoint_every": 100,
         "agent.hidden_sizes": (16, 16)}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two seeds whose actions have the unit [-2, 6]."""
    folder = tmp_path_factory.mktemp("run")
    assert preqn_jax.train("preqn_hopper", folder, num_seeds=2, **{"env.id": "ProbeAction-v0"}, **QUICK)
    return folder


def test_a_run_leaves_its_files_and_resumes(workdir, capsys):
    assert {"config.json", "metrics.csv", "checkpoints"} <= {path.name for path in workdir.iterdir()}
    before = (workdir / "metrics.csv").read_text()
    more = {**QUICK, "total_steps": 400}
    assert preqn_jax.train("preqn_hopper", workdir, num_seeds=2, **{"env.id": "ProbeAction-v0"}, **more)
    assert (workdir / "metrics.csv").read_text().startswith(before)
    assert "training from step 200" in capsys.readouterr().err


def test_actions_are_those_of_the_environment(workdir):
    policy, env = preqn_jax.load_policy(workdir), HostEnv("ProbeAction-v0", [0])
    observation = env.reset()
    action = policy(observation)
    assert policy.action_space.contains(action)
    assert action.dtype == policy.action_space.dtype
    batch = np.stack([observation, -observation])
    together = policy(batch)
    np.testing.assert_allclose(together[0], action, rtol=1e-6)  # some versions of JAX round batches differently
    assert together.shape == (2, *policy.action_space.shape)
    inner = np.asarray(policy._act(observation[None]))[0]
    np.testing.assert_allclose(action, -2.0 + 4.0 * (inner + 1.0), rtol=1e-6)
    assert policy(np.zeros((0, *observation.shape))).shape == (0, *policy.action_space.shape)


def test_the_policy_of_a_run_on_the_device_can_be_loaded(tmp_path):
    pytest.importorskip("brax")
    env = {"env.backend": "brax", "env.id": "fast", "env.num_envs": 2, "env.time_limit": 20}
    assert preqn_jax.train("preqn_norm_ant", tmp_path / "run", **env, **QUICK)
    policy = preqn_jax.load_policy(tmp_path / "run")
    observations = np.ones((3, *policy.observation_space.shape))
    actions = policy(observations)
    assert actions.shape == (3, *policy.action_space.shape)
    assert policy.action_space.contains(actions[0])
    np.testing.assert_array_equal(actions[0], actions[2])
    assert (actions != policy(-observations)).all()


def test_a_member_of_a_population_has_its_own_hyperparameters(tmp_path):
    pytest.importorskip("brax")
    agent = AGENTS["preqn_norm"](hidden_sizes=(16, 16), observation_floor=1.0)
    schedule = {name: value for name, value in QUICK.items() if "." not in name}
    env = EnvConfig("fast", backend="brax", num_envs=2, time_limit=20)
    config = Config(agent=agent, env=env, **schedule)
    trainer = DeviceTrainer(config, [Member(0), Member(0, {"observation_clip": 1e-3})])
    session.train(trainer, tmp_path, lambda step: Reporters([]), lambda: False)
    wide, narrow = (preqn_jax.load_policy(tmp_path, member=member) for member in (0, 1))
    near, far = (value * np.ones(wide.observation_space.shape) for value in (-1.0, -2.0))
    assert not np.array_equal(wide(near), wide(far))
    np.testing.assert_array_equal(narrow(near), narrow(far))  # both are clipped
    with pytest.raises(SettingError, match="member=0 to member=1"):
        preqn_jax.load_policy(tmp_path)


def test_nothing_is_logged_when_a_policy_is_loaded(workdir, caplog):
    preqn_jax.load_policy(workdir)
    assert not caplog.records


def test_every_seed_has_its_own_policy(workdir):
    observation = np.ones(2)
    one, two = (preqn_jax.load_policy(workdir, seed=seed)(observation) for seed in (0, 1))
    assert one != two
    with pytest.raises(SettingError, match=r"seed=2 is not among those of .*; allowed: 0, 1"):
        preqn_jax.load_policy(workdir, seed=2)


def test_the_policy_of_a_seed_that_was_stopped_is_announced(tmp_path, monkeypatch):
    learn = HostTrainer.learn

    def poisoned(self):
        if self.step == 60:
            self.replay.data.reward[1] = np.nan
        return learn(self)

    monkeypatch.setattr(HostTrainer, "learn", poisoned)
    assert preqn_jax.train("preqn_hopper", tmp_path, num_seeds=2, **{"env.id": "ProbeAction-v0"}, **QUICK)
    with pytest.warns(UserWarning, match="the learner was stopped early, and its policy is from before"):
        preqn_jax.load_policy(tmp_path, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preqn_jax.load_policy(tmp_path, seed=0)


def test_a_wrong_observation_is_named(workdir):
    with pytest.raises(
        ValueError, match=r"observation has shape \(3,\); this policy takes \(2,\), or a batch of these"
    ):
        preqn_jax.load_policy(workdir)(np.zeros(3))


def test_no_run_and_no_checkpoint_are_named(tmp_path):
    with pytest.raises(SettingError, match="holds no run"):
        preqn_jax.load_policy(tmp_path)
    never = lambda: True  # noqa: E731
    with pytest.raises(SettingError, match="did you mean total_steps"):
        preqn_jax.train("preqn_hopper", tmp_path / "run", should_stop=never, total_step=100)
    assert not (tmp_path / "run").exists()


# What loads an exported policy, where nothing of this library nor Flax can be imported.
ALONE = """
import pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("preqn_jax", "flax", "optax", "gymnasium", "chex"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import jax.export, numpy as np
exported = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
print(np.asarray(exported.call(np.array([[1.0, -1.0], [1.0, 1.0], [0.5, 0.0]], np.float32))).tolist())
"""


def test_an_exported_policy_runs_without_this_library(workdir, tmp_path):
    policy = preqn_jax.load_policy(workdir)
    policy.export(tmp_path / "policy.bin")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "policy.bin")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    expected = policy(np.array([[1.0, -1.0], [1.0, 1.0], [0.5, 0.0]]))
    np.testing.assert_allclose(json.loads(output), expected, rtol=1e-5)


def exported(space, action, tmp_path):
    observations = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    agent = Agent(**dict.fromkeys(Agent._fields))
    agent = agent._replace(act=lambda state, observation: jax.numpy.tile(action, (observation.shape[0], 1)))
    Policy(agent, None, observations, space, 0).export(tmp_path / "policy.bin")
    data = pathlib.Path(tmp_path / "policy.bin").read_bytes()
    return np.asarray(jax.export.deserialize(bytearray(data)).call(np.zeros((2, 3), np.float32)))


def test_discrete_actions_and_wide_bounds_are_exported(tmp_path):
    discrete = exported(gymnasium.spaces.Discrete(3, start=5), jax.numpy.array([0.0, 1.0, 0.0]), tmp_path)
    np.testing.assert_array_equal(discrete, [6, 6])
    largest = np.finfo(np.float32).max
    wide = exported(gymnasium.spaces.Box(-largest, largest, (2,)), jax.numpy.array([0.5, -1.0]), tmp_path)
    np.testing.assert_allclose(wide, [[largest / 2, -largest]] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match="actions of type int64 cannot be exported"):
        _in_units(gymnasium.spaces.Box(0, 5, (2,), np.int64), jax.numpy.zeros((1, 2)))


def test_weights_and_biases_gets_every_evaluation_and_continues_its_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from preqn_jax.training.reporters import WandbReporter

    logged, ids = [], []

    class Watched(WandbReporter):
        def __init__(self, workdir, config, first_step):
            super().__init__(workdir, config, first_step, project="tests", mode="offline", settings={"silent": True})
            ids.append(self._run.id)
            log = self._run.log
            self._run.log = lambda data: logged.append(data) or log(data)

    options = {"env.id": "ProbeAction-v0", **QUICK}
    for steps in (200, 400):
        options["total_steps"] = steps
        preqn_jax.train("preqn_hopper", tmp_path / "run", reporters=(RunReporter, Watched), **options)
    assert [row["step"] for row in logged] == [200, 200, 400]  # the longer run repeats the evaluation of its checkpoint
    assert {"seed_0/return_mean", "seed_0/td_error"} <= logged[0].keys()
    assert ids[0] == ids[1] == (tmp_path / "run" / "wandb_id.txt").read_text()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None
