"""Every program of training lowers for GPUs and TPUs: all agents, vmapped members, four devices, MJX's physics."""

import jax
import jax.numpy as jnp
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.envs import device, make_mjx
from preqn_jax.envs.config import EnvConfig
from preqn_jax.training.base import guarded_steps_of
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer, Member
from preqn_jax.types import Transition, transition_shapes
from tests.device_probes import PROBES
from tests.lowering import BACKENDS, lower
from tests.training.runs import SCHEDULE

pytestmark = pytest.mark.slow

DEVICES, MEMBERS = 4, 8  # two members on each device, so that they are vmapped there
NAMES = [name for name in AGENTS if not name.startswith("naive")]  # which lack a part of another's program
# More of what a program can contain, for one agent.
OPTIONS = {"preqn_norm": {"measure_alignment": True, "n_step": 2, "diagnose_every": 50}}
AGENT_OPTIONS = {"preqn_norm": {"policy": "gaussian", "observation_tail": 1.0}}


@pytest.fixture
def trainer(monkeypatch):
    """name of an agent -> a trainer on an environment that costs nothing to trace."""

    def make_env(env):
        probe, time_limit = PROBES[env.id]
        return device.from_brax(probe, time_limit)

    def make(name):
        agent = AGENTS[name](hidden_sizes=(8,), **AGENT_OPTIONS.get(name, {}))
        env = EnvConfig("action", backend="brax", num_envs=2)
        config = Config(agent=agent, env=env, **{**SCHEDULE, **OPTIONS.get(name, {})})
        # A hyperparameter that differs between members is an argument of the program.
        members = [Member(seed, {"gamma": 0.9 + 0.01 * seed}) for seed in range(MEMBERS)]
        return DeviceTrainer(config, members, jax.devices()[:DEVICES])

    monkeypatch.setattr(device, "make", make_env)
    return make


@pytest.mark.parametrize("name", [name for name in NAMES if not AGENTS[name].discrete])
def test_the_programs_of_a_population_on_four_devices_lower(name, trainer):
    trainer = trainer(name)
    expected = {"init", "iteration", "evaluation"} | ({"diagnosis"} if name in OPTIONS else set())
    assert set(trainer.programs()) == expected
    for program in expected:
        exported = lower(lambda program=program: trainer.programs()[program])
        assert exported.nr_devices == DEVICES
        assert exported.out_avals[0].shape[0] == MEMBERS


@pytest.mark.parametrize("name", [name for name in NAMES if AGENTS[name].discrete])
def test_the_gradient_steps_of_discrete_agents_lower(name):
    """Their environments run on the CPU; the gradient steps of an iteration need not."""
    agent, _ = AGENTS[name](hidden_sizes=(8,)).make(3, 2)
    steps = jax.jit(jax.vmap(guarded_steps_of(agent), in_axes=(0, 0, 0, None, 0)))
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.eval_shape(jax.vmap(agent.init), keys)
    batches = Transition(*(jnp.zeros((2, 5, 4, *shape)) for shape in transition_shapes(3, 2)))
    lower(lambda: (steps, (state, batches, keys, jnp.uint32(0), jnp.ones(2, bool))))


@pytest.mark.parametrize("platform", BACKENDS)
def test_the_physics_with_contacts_lowers(platform):
    """For each platform alone: MJX takes sparse matrices on TPUs."""

    def make():
        env = make_mjx("Ant-v5")
        keys, actions = jax.ShapeDtypeStruct((2, 2), jnp.uint32), jax.ShapeDtypeStruct((2, 8), jnp.float32)
        return jax.jit(jax.vmap(env.step)), (jax.eval_shape(jax.vmap(env.reset), keys), actions)

    lower(make, (platform,))
