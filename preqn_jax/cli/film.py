"""Records a video of an episode, or prints why this is not possible."""

from __future__ import annotations

import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

from preqn_jax.envs import host as host_env
from preqn_jax.envs.host import HostEnv
from preqn_jax.settings import first_line
from preqn_jax.training.config import Config

Policy = Callable[[np.ndarray], np.ndarray]

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".gif")  # formats that imageio writes without further options

_REMEDY = ("; MuJoCo needs EGL or OSMesa (Debian: libegl1 or libosmesa6) and MUJOCO_GL=egl or "
           "MUJOCO_GL=osmesa")  # fmt: skip


def write(policy: Policy, config: Config, seed: Sequence[int], path: pathlib.Path) -> bool:
    """Records the first episode with the policy of the first seed; prints the path, or the reason for a failure.

    Args:
      policy: observations ``[S, E, O]`` -> actions ``[S, E, A]``, in [-1, 1] or one-hot.
      config: configuration of the run.
      seed: seed of the episode.
      path: path of the video; its suffix, one of :data:`SUFFIXES`, determines the format.

    Returns:
      Whether the video was written.
    """
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401  (imageio imports it itself, but fails late if it is missing)
    except ImportError:
        print("no video: imageio[ffmpeg] is not installed (it comes with requirements.txt)", file=sys.stderr)
        return False
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's default needs a display
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about missing OpenGL libraries and the encoder process
        try:
            env = host_env.make(config.env, seed, render_mode="rgb_array")
            frames = _frames(policy, env, config.num_seeds)
            env.close()
        except Exception as error:  # renderers and OpenGL backends raise any exception type
            print(f"no video: {_why_no_pictures(config, seed, error)}", file=sys.stderr)
            return False
        try:
            imageio.mimwrite(path, frames, fps=env.frames_per_second, macro_block_size=None)
        except Exception as error:  # likewise encoders
            print(f"no video: {path} cannot be written ({first_line(error)})", file=sys.stderr)
            return False
    print(f"video of {len(frames)} frames: {path}")
    return True


def _frames(policy: Policy, env: HostEnv, num_seeds: int) -> list[Any]:
    """The frames of one episode with the policy of the first seed."""
    observation, frames, over = env.reset(0), [env.render()], False
    while not over:
        # The policy needs one row per seed; only the first one is used.
        step = env.step(policy(np.broadcast_to(observation, (num_seeds, 1, observation.size)))[0, 0])
        observation, over = step.observation, step.terminated or step.truncated
        frames.append(env.render())
    return frames


def _why_no_pictures(config: Config, seed: Sequence[int], error: Exception) -> str:
    env = host_env.make(config.env, seed)
    if "rgb_array" not in env.render_modes:
        return (f"{config.env.id} cannot be rendered: the render_modes in its metadata "
                f"({', '.join(env.render_modes) or 'none'}) do not include rgb_array")  # fmt: skip
    return f"rendering failed ({first_line(error)}){_REMEDY if isinstance(env.unwrapped, MujocoEnv) else ''}"
