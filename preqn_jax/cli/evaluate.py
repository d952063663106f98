"""Evaluates a run and records a video of it: ``python -m experiments.rollout --workdir=runs/preqn_ant``."""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np
from absl import flags

from preqn_jax.cli import film
from preqn_jax.envs import BACKENDS
from preqn_jax.envs import host as host_env
from preqn_jax.envs.host import HostEnv
from preqn_jax.settings import SettingError, nearest
from preqn_jax.training import policy, presets
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.config import Config
from preqn_jax.training.evaluation import evaluate

_WORKDIR = flags.DEFINE_string("workdir", None, "work directory of the run")
_EPISODES = flags.DEFINE_integer("episodes", 10, "number of episodes per seed", lower_bound=1)
_VIDEO = flags.DEFINE_string(
    "video",
    None,
    f"path of the video of one episode; allowed suffixes: {', '.join(film.SUFFIXES)} (default: <workdir>/rollout.mp4)",
)

_STREAM = 2  # episodes that are used neither in training nor in its evaluations


def main() -> int:
    """Prints the returns and writes the video; returns the exit code."""
    if not _WORKDIR.value:
        raise SettingError("--workdir is missing; give the work directory of a run")
    workdir, video = pathlib.Path(_WORKDIR.value), pathlib.Path(_VIDEO.value or f"{_WORKDIR.value}/rollout.mp4")
    if _VIDEO.value:
        _check_path(video)
    config = presets.from_dict(presets.read_config(workdir))
    if not config.env.facts.in_gymnasium:
        allowed = ", ".join(name for name, facts in BACKENDS.items() if facts.in_gymnasium)
        raise SettingError(
            f"--workdir={workdir} was trained with backend={config.env.backend}, which this command cannot evaluate; "
            f"allowed: {allowed}"
        )
    seeds = range(config.seed, config.seed + config.num_seeds)
    try:
        envs = [[host_env.make(config.env, [seed, _STREAM]) for _ in range(_EPISODES.value)] for seed in seeds]
        policies, running = _load_policies(workdir, config, envs[0][0])
    except CheckpointError as error:
        raise SettingError(str(error)) from error
    for caveat in envs[0][0].caveats:
        print(f"warning: {caveat}", file=sys.stderr)
    evaluation = evaluate(policies, envs, first_episode=0, gamma=config.agent.gamma)
    assert evaluation is not None  # it is None only if should_stop is given
    returns, lengths = evaluation.returns, evaluation.lengths
    for s, seed in enumerate(seeds):
        print(
            f"seed {seed}: return {returns[s].mean():.1f} +- {returns[s].std():.1f} over {_EPISODES.value} episode(s) "
            f"of {lengths[s].mean():.0f} steps on average"
        )
        if not running[s]:
            print(f"warning: seed {seed}: {policy.STOPPED}", file=sys.stderr)
    written = film.write(policies, config, [config.seed, _STREAM], video)
    return 0 if written or not _VIDEO.value else 1  # without --video, the returns alone are a result


def _check_path(video: pathlib.Path) -> None:
    """Raises SettingError if no video can be written to this path; the encoder would report it after the evaluation."""
    if not video.parent.is_dir():
        raise SettingError(
            f"--video={video}: the directory {video.parent} does not exist; create it, or choose another"
        )
    if video.suffix.lower() not in film.SUFFIXES:
        found = f"the suffix {video.suffix}" if video.suffix else "no suffix"
        near, allowed = nearest(video.suffix, film.SUFFIXES), ", ".join(film.SUFFIXES)
        raise SettingError(f"--video={video} has {found}; did you mean {near}? (allowed: {allowed})")


def _load_policies(workdir: pathlib.Path, config: Config, env: HostEnv) -> tuple[film.Policy, np.ndarray]:
    """The function from observations ``[S, E, O]`` to actions ``[S, E, A]`` of the newest checkpoint.

    The second result is False for seeds that were stopped early, ``[S]``.
    """
    step, arrays, running, members = policy.read_checkpoint(workdir, config)
    if members is not None:
        raise SettingError(
            f"--workdir={workdir} is a chunk of a sweep, which this command cannot evaluate; load one of its policies "
            "with preqn_jax.load_policy(workdir, member=0)"
        )
    agent, states = policy.restore(config, arrays, env.observation_size, env.action_size, config.num_seeds)
    print(f"{config.env.id}, checkpoint of step {step}")
    act = jax.jit(jax.vmap(agent.act))
    return lambda observation: np.asarray(act(states, observation)), running
