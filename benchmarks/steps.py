"""Candidates for whole steps of training: environment step, action, replay buffer and one gradient step."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.timing import Candidate
from preqn_jax.training import presets
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer, Member
from preqn_jax.training.host import HostTrainer

OURS = ("preqn", "preqn_norm", "sac", "td3")
PEERS = {"sac": "SAC", "td3": "TD3", "ddpg": "DDPG", "crossq": "CrossQ"}  # classes of SBX
HIDDEN_SIZES = (256, 256)
_OWN_NETWORKS = ("crossq",)  # keep their own sizes: CrossQ's critic is wide by design
_WARM_UP = 200  # steps with random actions before the first gradient step
_REPLAY = 100_000


class Setting(NamedTuple):
    """The settings that all candidates share.

    Attributes:
      env: Gymnasium id.
      batch_size: minibatch B [transitions].
      steps: environment steps of one timed run.
    """

    env: str
    batch_size: int
    steps: int


def ours(algorithm: str, setting: Setting) -> Candidate:
    """Returns a candidate with an agent and the schedule of this library (as many gradient as environment steps)."""
    assignments = (
        f"env.id={setting.env}",
        f"batch_size={setting.batch_size}",
        f"agent.hidden_sizes={','.join(map(str, HIDDEN_SIZES))}",
        f"start_steps={_WARM_UP}",
        f"update_after={_WARM_UP}",
        f"replay_capacity={max(_REPLAY, setting.batch_size)}",
    )
    config = functools.reduce(presets.override, assignments, presets.get_config(f"{algorithm}_halfcheetah"))
    start = time.perf_counter()
    trainer = HostTrainer(config)
    trainer.compile()

    def learn(steps: int) -> None:
        for _ in range(steps // config.update_every):
            trainer.advance()

    return _candidate(algorithm, learn, setting, start)


def training(name: str, count: int, config: Config) -> Candidate:
    """Training of ``count`` members whose environments run on the device, past the start."""
    config = dataclasses.replace(config, start_steps=0, update_after=config.update_every)
    trainer = DeviceTrainer(config, [Member(seed) for seed in range(count)])
    seconds = trainer.compile()
    trainer.advance()
    return Candidate(name, trainer.advance, config.update_every, seconds, None)


def of_sbx(algorithm: str, setting: Setting, update_every: int, sbx: ModuleType) -> Candidate:
    """Returns a candidate that trains with ``learn`` of SBX; by default, its TD3 and DDPG act without noise.

    Args:
      algorithm: a key of :data:`PEERS`.
      setting: the common setting.
      update_every: environment steps between updates; each update makes as many gradient steps.
      sbx: the package.
    """
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": list(HIDDEN_SIZES)}}
    start = time.perf_counter()
    model = getattr(sbx, PEERS[algorithm])(
        "MlpPolicy", setting.env, batch_size=setting.batch_size, buffer_size=_REPLAY, learning_starts=_WARM_UP,
        train_freq=update_every, gradient_steps=update_every, seed=0,
        **({} if algorithm in _OWN_NETWORKS else options),
    )  # fmt: skip

    def learn(steps: int) -> None:
        model.learn(steps, log_interval=None, reset_num_timesteps=False)

    return _candidate(peer_name(algorithm, update_every), learn, setting, start)


def peer_name(algorithm: str, update_every: int) -> str:
    """The name of a candidate of SBX in tables."""
    return f"SBX {PEERS[algorithm]}, updates every {'step' if update_every == 1 else f'{update_every} steps'}"


def _candidate(name: str, learn: Callable[[int], None], setting: Setting, start: float) -> Candidate:
    """Trains beyond the warm-up, so that everything is compiled; ``start`` is the time before the construction."""
    learn(_WARM_UP + setting.steps)
    learn(setting.steps)  # compiles functions that depend on the number of steps
    return Candidate(name, lambda: learn(setting.steps), setting.steps, time.perf_counter() - start, None)
