"""Trained policies, which map observations of an environment to actions in the environment's own units."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import jax.export  # which JAX 0.7 does not import by itself
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from preqn_jax.agents.base import Agent, AgentState
from preqn_jax.envs import host, interface
from preqn_jax.settings import SettingError, first_line
from preqn_jax.training import presets
from preqn_jax.training.base import restore_tree
from preqn_jax.training.checkpoint import Arrays, CheckpointError, Checkpoints
from preqn_jax.training.config import Config
from preqn_jax.training.workdir import check_recorded
from preqn_jax.types import Array

# Said of a learner whose agent is no longer that of the checkpoint's step.
STOPPED = "the learner was stopped early, and its policy is from before; see the events in config.json"


class Policy:
    """The deterministic policy of one trained seed.

    Attributes:
      observation_space: ``gymnasium.Space`` of the environment's observations.
      action_space: ``gymnasium.Space`` of the environment's actions.
      step: environment step of the checkpoint. A learner that was stopped early was trained for fewer steps.
    """

    def __init__(
        self,
        agent: Agent,
        state: AgentState,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        step: int,
    ):
        """Wraps the state of an agent; use :func:`load_policy` to load it from a work directory."""
        self.observation_space, self.action_space, self.step = observation_space, action_space, step
        self._act = jax.jit(lambda observation: agent.act(state, observation))
        self._to_space = host.to_space(action_space)

    def __call__(self, observation: Any) -> Any:
        """Returns the actions for one observation of the environment, or for a batch of N observations.

        Args:
          observation: an observation as the environment returns it; for a Box space also a batch ``[N, *shape]``.

        Returns:
          An action of ``action_space``; for a batch of N observations, an array of N actions ``[N, ...]``.

        Raises:
          ValueError: if the observation does not have the shape of a Box space, or is not an element of a space of
            another type.
        """
        space = self.observation_space
        if not isinstance(space, Box):
            observation = jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, Array) else leaf, observation)
            if fault := interface.misfit(space, observation, "an observation"):
                raise ValueError(f"this policy cannot take {fault}; batches are allowed for Box spaces only")
            return self._to_space(np.asarray(self._act(interface.flat(space, observation)[None]))[0])
        array = _numbers(observation)
        single = array.shape == space.shape
        if not single and (array.ndim != len(space.shape) + 1 or array.shape[1:] != space.shape):
            shapes = f"{space.shape}, or a batch of these with a leading axis N"
            raise ValueError(f"observation has shape {array.shape}; this policy takes {shapes}")
        rows = array.reshape(1 if single else len(array), int(np.prod(space.shape)))
        actions = [self._to_space(action) for action in np.asarray(self._act(rows))]
        return actions[0] if single else np.array(actions).reshape(-1, *(self.action_space.shape or ()))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the policy to a file with jax.export, for CPU, CUDA and TPU.

        To run it, JAX and flatbuffers are needed, but not this library:

            import jax.export  # by name: older versions of JAX do not import it themselves
            exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
            actions = exported.call(observations)     # [N, O] float32 -> [N, ...] in the environment's units

        O is the length of an observation flattened by ``gymnasium.spaces.flatten``, which joins the entries of a Dict
        in the order of ``list(observation_space)``. Actions are float32, or int32 for a discrete space.

        Args:
          path: path of the file.

        Raises:
          ValueError: if the action space is a Box of integers.
        """
        (rows,) = jax.export.symbolic_shape("N")
        size = gymnasium.spaces.flatdim(self.observation_space)
        program = jax.jit(lambda observation: _in_units(self.action_space, self._act(observation)))
        exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(
            jax.ShapeDtypeStruct((rows, size), jnp.float32)
        )
        pathlib.Path(path).write_bytes(exported.serialize())


def _numbers(observation: Any) -> np.ndarray:
    """Converts an observation of a Box, or a batch, to float32; raises ValueError if it is not an array of numbers."""
    try:
        return np.asarray(observation, np.float32)
    except (TypeError, ValueError) as error:
        found = f"{type(observation).__name__} ({first_line(error)})"
        raise ValueError(f"observation must be an array of numbers, got {found}") from None


def _in_units(space: gymnasium.Space, action: Array) -> Array:
    """Converts an agent's actions ``[N, A]``, in [-1, 1] or one-hot, to actions of the environment's space."""
    if isinstance(space, Discrete):
        return (jnp.argmax(action, axis=-1) + int(space.start)).astype(jnp.int32)
    assert isinstance(space, Box)
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"actions of type {space.dtype} cannot be exported; allowed: floating point, or Discrete")
    action = action.reshape(-1, *space.shape)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), action.shape) for bound in (space.low, space.high))
    share = 0.5 * (action + 1.0)
    return jnp.clip((1.0 - share) * low + share * high, low, high)  # high - low could overflow


def load_policy(workdir: str | os.PathLike[str], seed: int | None = None, *, member: int | None = None) -> Policy:
    """Loads the policy from a run's newest checkpoint; warns if the learner was stopped before it.

    Args:
      workdir: work directory of the run, or of a chunk of a sweep on the device.
      seed: one of the seeds of the run; by default the first one.
      member: for a chunk of a sweep, the position of a run in it: 0 for the run of the chunk with the lowest number.

    Raises:
      SettingError: if the directory holds no run, the run has no checkpoint yet, not this seed or not this member, or
        its environment cannot be created.
      CheckpointError: if the checkpoint cannot be read.
    """
    workdir = pathlib.Path(workdir)
    config = presets.from_dict(presets.read_config(workdir))
    step, arrays, running, members = read_checkpoint(workdir, config)
    if members is None:
        chosen, learners = _number_of_seed(workdir, config, seed, member), config.num_seeds
    else:
        chosen, learners = _number_of_member(workdir, members, seed, member), len(members)
        agent_config = dataclasses.replace(config.agent, **members[chosen]["hyperparameters"])
        config = dataclasses.replace(config, agent=agent_config)
    if not running[chosen]:
        warnings.warn(f"{workdir}: {STOPPED}", stacklevel=2)
    observations, actions = _spaces(config, arrays)
    agent, states = restore(config, arrays, gymnasium.spaces.flatdim(observations), host.size(actions), learners)
    return Policy(agent, jax.tree.map(lambda leaf: leaf[chosen], states), observations, actions, step)


def _number_of_seed(workdir: pathlib.Path, config: Config, seed: int | None, member: int | None) -> int:
    """The position of a seed, by default of the first one, among those of a run."""
    if member is not None:
        raise SettingError(f"member={member} is only allowed for a chunk of a sweep, not for {workdir}; give a seed")
    seeds = range(config.seed, config.seed + config.num_seeds)
    seed = config.seed if seed is None else seed
    if seed not in seeds:
        raise SettingError(f"seed={seed} is not among those of {workdir}; allowed: {', '.join(map(str, seeds))}")
    return seed - config.seed


def _number_of_member(workdir: pathlib.Path, members: Sequence[Any], seed: int | None, member: int | None) -> int:
    """Checks the position of a run in a chunk."""
    if seed is not None or not isinstance(member, int) or member not in range(len(members)):
        raise SettingError(f"{workdir} is a chunk of a sweep; allowed: member=0 to member={len(members) - 1}, for its "
                           "runs in the order of their numbers")  # fmt: skip
    return member


class Stored(NamedTuple):
    """A run's newest checkpoint.

    Attributes:
      step: its environment step.
      arrays: the arrays of the agent by name, and the shapes of all others.
      running: False for learners that were stopped because a value became NaN or infinite, ``[S]``; their agents are
        those from before.
      members: seed and hyperparameters of each member if it belongs to a chunk of a sweep, else None.
    """

    step: int
    arrays: Arrays
    running: np.ndarray
    members: list[dict[str, Any]] | None


def read_checkpoint(workdir: pathlib.Path, config: Config) -> Stored:
    """Reads the newest checkpoint of a run, or of a chunk of a sweep, whose config.json holds ``config``.

    Raises:
      SettingError: if there is no checkpoint, or it was written with another configuration than that in config.json.
      CheckpointError: if it cannot be read.
    """
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
        try:
            step = checkpoints.latest_step()
            if step is not None:
                record = checkpoints.record(step)
                check_recorded(workdir, config, record, step)
                members = record.get("members")
                arrays = checkpoints.restore(step, only=("agent.", "running"))
                running = arrays.get("running", np.ones(len(members) if members else config.num_seeds, bool))
                return Stored(step, arrays, np.asarray(running), members)
        finally:
            checkpoints.close()
    raise SettingError(f"{workdir} has no checkpoint yet")


def restore(
    config: Config, arrays: Arrays, observation_size: int, action_size: int, learners: int
) -> tuple[Agent, AgentState]:
    """Creates the agent of a configuration and restores its states from a checkpoint, with a leading axis of learners.

    Raises:
      CheckpointError: if the checkpoint belongs to another configuration, or has another number of learners.
    """
    found = {array.shape[0] for name, array in arrays.items() if name.startswith("agent.") and array.ndim}
    if found != {learners}:
        raise CheckpointError(f"the checkpoint has {max(found, default=0)} learners, where {learners} are expected: it "
                              "belongs to another run, or to a sweep of an earlier version")  # fmt: skip
    agent, _ = config.agent.make(observation_size, action_size)
    keys = jax.vmap(jax.random.key)(np.arange(learners))
    return agent, restore_tree(jax.eval_shape(jax.vmap(agent.init), keys), arrays, "agent")


def _spaces(config: Config, arrays: Arrays) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The observation and action spaces. Backends without Gymnasium use vectors, and actions in [-1, 1]."""
    if config.env.facts.in_gymnasium:
        env = host.make(config.env, [config.seed])
        env.close()
        return env.observation_space, env.action_space
    names = ("replay.transitions.observation", "replay.transitions.action")
    observation, action = (arrays[name].shape[-1:] for name in names)
    return Box(-np.inf, np.inf, observation, np.float32), Box(-1.0, 1.0, action, np.float32)
