"""An episode of a policy as a film, or a line that says why there is none."""

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

_REMEDY = ("; MuJoCo needs EGL or OSMesa (Debian: libegl1 or libosmesa6) and MUJOCO_GL=egl or "
           "MUJOCO_GL=osmesa")  # fmt: skip


def write(policy: Policy, config: Config, seed: Sequence[int], path: pathlib.Path) -> None:
    """Films the first episode under the first seed's policy; prints one line on the film, or on why there is none.

    Args:
      policy: observations ``[S, E, O]`` -> actions ``[S, E, A]``, as numbers in [-1, 1] or one-hot.
      config: of the run.
      seed: of the episode.
      path: of the film; the name's ending says in which format.
    """
    try:
        import imageio
        import imageio_ffmpeg  # noqa: F401  (imageio finds it by itself, but fails late where it is missing)
    except ImportError:
        print("no video: imageio[ffmpeg] is not installed (it comes with requirements.txt)", file=sys.stderr)
        return
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own default wants a display
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of OpenGL libraries that are tried in vain, of the encoder's process
        try:
            env = host_env.make(config.env, seed, render_mode="rgb_array")
            frames = _frames(policy, env, config.num_seeds)
            env.close()
        except Exception as error:  # each renderer and OpenGL backend fails in its own way
            print(f"no video: {_why_no_pictures(config, seed, error)}", file=sys.stderr)
            return
        try:
            imageio.mimwrite(path, frames, fps=env.frames_per_second, macro_block_size=None)
        except Exception as error:  # each encoder too
            print(f"no video: {path} cannot be written ({first_line(error)})", file=sys.stderr)
            return
    print(f"video of {len(frames)} frames: {path}")


def _frames(policy: Policy, env: HostEnv, num_seeds: int) -> list[Any]:
    """Pictures of one episode under the first seed's policy."""
    observation, frames, over = env.reset(0), [env.render()], False
    while not over:
        # Only the first row counts; the policy wants one a seed.
        step = env.step(policy(np.broadcast_to(observation, (num_seeds, 1, observation.size)))[0, 0])
        observation, over = step.observation, step.terminated or step.truncated
        frames.append(env.render())
    return frames


def _why_no_pictures(config: Config, seed: Sequence[int], error: Exception) -> str:
    env = host_env.make(config.env, seed)
    if "rgb_array" not in env.render_modes:
        return (f"{config.env.id} has no pictures: of the render_modes in its metadata "
                f"({', '.join(env.render_modes) or 'none'}) none is rgb_array")  # fmt: skip
    return f"rendering failed ({first_line(error)}){_REMEDY if isinstance(env.unwrapped, MujocoEnv) else ''}"
