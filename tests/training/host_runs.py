"""Runs of HostTrainer on probes."""

import functools

from preqn_jax.agents import AGENTS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.training.config import Config
from preqn_jax.training.host import HostTrainer
from tests import probes  # noqa: F401  (registers the probes)
from tests.training.runs import AGENT, SCHEDULE, copied, trained_by


def config(env_id="ProbeOne-v0", **changes):
    return Config(agent=changes.pop("agent", AGENT), env=EnvConfig(env_id), **{**SCHEDULE, **changes})


def trained(configuration, *arguments, **options):
    return trained_by(HostTrainer(configuration), *arguments, **options)


@functools.cache
def whole_run(configuration):
    """A run that nothing stopped, made once for all tests that compare with it; none may change it."""
    return trained(configuration)


@functools.cache
def compiled(configuration):
    """A trainer and its arrays at the start; for tests that restore them first."""
    trainer = HostTrainer(configuration)
    trainer.compile()
    return trainer, copied(trainer.arrays())


def small(name):
    """Settings under which two thousand updates are enough."""
    settings = {"hidden_sizes": (16, 16), "gamma": 0.5}
    if not name.startswith("preqn"):
        settings |= {"critic_learning_rate": 1e-2}
    if name == "sac":
        settings |= {"temperature": 0.01}
    return AGENTS[name](**settings)


def stop_in_the_evaluation_after(asked):
    """A signal that comes with the question number ``asked``."""
    questions = iter(range(asked))
    return lambda: next(questions, None) is None
