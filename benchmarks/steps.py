"""Whole steps of training, as a user runs it: environment step, action, replay buffer and one gradient step."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.timing import Candidate
from preqn_jax.training import presets
from preqn_jax.training.host import HostTrainer

OURS = ("preqn", "preqn_norm", "sac", "td3")
PEERS = {"sac": "SAC", "td3": "TD3", "ddpg": "DDPG", "crossq": "CrossQ"}  # classes of SBX
HIDDEN_SIZES = (256, 256)
_OWN_NETWORKS = ("crossq",)  # keeps its own sizes, as its critic is wide by design
_WARM_UP = 200  # steps with random actions before the first gradient step
_REPLAY = 100_000


class Setting(NamedTuple):
    """What all candidates have in common.

    Attributes:
      env: Gymnasium id.
      batch_size: minibatch B [transitions].
      steps: environment steps of one timed run.
    """

    env: str
    batch_size: int
    steps: int


def ours(algorithm: str, setting: Setting) -> Candidate:
    """Training with an agent of this library and its own schedule, as many gradient steps as environment steps."""
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


def of_sbx(algorithm: str, setting: Setting, update_every: int, sbx: ModuleType) -> Candidate:
    """Training with an algorithm of SBX by its own ``learn``; TD3 and DDPG act without noise, which is its default.

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
    """Learns past the warm-up, so that everything is compiled; ``start`` is when its construction began."""
    learn(_WARM_UP + setting.steps)
    learn(setting.steps)  # what depends on the number of steps is compiled by now
    return Candidate(name, lambda: learn(setting.steps), setting.steps, time.perf_counter() - start, None)
