"""Training with environments on the device: one compiled program collects transitions and updates all learners."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from preqn_jax.envs import device as device_env
from preqn_jax.settings import SettingError
from preqn_jax.training import base, memory
from preqn_jax.training.base import Infos, Interval, Notice, Trainer
from preqn_jax.training.checkpoint import Arrays
from preqn_jax.training.config import Config
from preqn_jax.training.distribution import Distribution, local, local_shapes
from preqn_jax.training.evaluation import Evaluation
from preqn_jax.training.population import Identity, Population, PopulationFunctions
from preqn_jax.types import Array, transition_bytes


class Member(NamedTuple):
    """One learner of a population.

    Attributes:
      seed: its seed.
      hyperparameters: fields of the agent's configuration that differ for this member, e.g. ``{"step_size": 0.03}``.
    """

    seed: int
    hyperparameters: Mapping[str, float] = types.MappingProxyType({})


class DeviceTrainer(Trainer):
    """M learners (members), each with N environments, distributed over devices along the member axis.

    Attributes:
      sharding: sharding, over the devices of all processes, of every array whose leading axis is the member axis.
    """

    def __init__(
        self, config: Config, members: Sequence[Member] | None = None, devices: Sequence[jax.Device] | None = None
    ):
        """Creates environments and agents, without compiling anything.

        Args:
          config: configuration of the run.
          members: the population; by default one member for each seed of the configuration.
          devices: devices over which the members are distributed evenly; by default the first local device. They may
            belong to several processes, in contiguous blocks: each process then creates the same trainer, and holds
            only its own members.

        Raises:
          SettingError: if the configuration is invalid, or the population does not fit the devices.
        """
        self._planned = members  # of all processes
        if members is None:
            members = [Member(seed) for seed in range(config.seed, config.seed + config.num_seeds)]
        devices = list(devices or jax.local_devices()[:1])
        if len(members) % len(devices):
            raise SettingError(
                f"{len(members)} members cannot be spread evenly over {len(devices)} devices; nearest: "
                f"{-(-len(members) // len(devices)) * len(devices)} members"
            )
        each = len(members) // len(devices)
        here = [number for number, device in enumerate(devices) if device.process_index == jax.process_index()]
        self.members = [member for number in here for member in members[number * each : (number + 1) * each]]
        super().__init__(config, [member.seed for member in self.members])
        self.env = device_env.make(config.env)
        transition = transition_bytes(self.env.observation_size, self.env.action_size)
        self.replay_bytes = len(self.members) * config.replay_capacity * transition
        self._check_memory(devices[here[0]], len(here), transition)
        self._distribution = Distribution(devices)
        self.sharding = self._distribution.sharding
        identity = Identity(self._hyperparameters(), np.asarray(jax.random.key_data(self.keys)))
        self._identity = self._distribution.spread(identity)
        self._functions = PopulationFunctions(config, self.env)

    def _check_memory(self, device: jax.Device, count: int, transition: int) -> None:
        """Raises SettingError unless the replay buffers and one iteration's minibatches fit on ``count`` devices."""
        config, available = self.config, memory.of_devices(device, count)
        minibatches = len(self.members) * config.updates_per_iteration * config.batch_size * transition
        minibatches *= 1 + config.measure_alignment
        fits = int(config.replay_capacity * (available - minibatches) / self.replay_bytes)
        fits -= fits % config.update_every
        remedy = f"at most {fits} transitions fit" if fits > 0 else "lower config.batch_size, or use fewer members"
        what, members = f"config.replay_capacity={config.replay_capacity}", f"{len(self.members)} member(s)"
        memory.check(self.replay_bytes + minibatches, what, members, remedy, available)

    def compile(self) -> float:
        """See :meth:`Trainer.compile`."""
        start = time.perf_counter()
        programs = self.programs()
        init, arguments = programs.pop("init")
        self.population: Population = init(*arguments)
        # Compiled ahead of time, so that a call with other shapes fails instead of recompiling.
        lowered = {name: program.lower(*arguments) for name, (program, arguments) in programs.items()}
        compiled = {name: program.compile() for name, program in lowered.items()}
        self._iterate, self._play = compiled["iteration"], compiled["evaluation"]
        self._diagnose = compiled.get("diagnosis")
        infos = lowered["iteration"].out_info[1].infos
        diagnosis = lowered["diagnosis"].out_info if "diagnosis" in lowered else ()
        self.interval = Interval(len(self.members), sorted(infos), sorted(diagnosis))
        return time.perf_counter() - start

    def programs(self) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The programs of the run, without compiling or allocating anything.

        Returns:
          The jitted function and its arguments by name: ``init``, ``iteration`` (which donates the population),
          ``evaluation`` and, with ``config.diagnose_every``, ``diagnosis``. The population is given by its shapes, so
          that a program can be lowered, exported (``jax.export``) or compiled, but not called.
        """

        def placed(leaf: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding)

        init = self._program(self._functions.init, shared=(False,))
        population = jax.tree.map(placed, jax.eval_shape(init, self._identity))
        arguments = self._identity, population, np.uint32(0)
        programs = {
            "init": (init, (self._identity,)),
            "iteration": (self._program(self._functions.iterate, donate=1), arguments),
            "evaluation": (self._program(self._functions.play), arguments),
        }
        if self.config.diagnose_every:
            programs["diagnosis"] = self._program(self._functions.diagnose), arguments
        return programs

    def member_bytes(self) -> int:
        """Memory per member [bytes], from the compiler's memory analysis; compiles, but allocates no buffers."""
        iteration, arguments = self.programs()["iteration"]
        analysis: Any = iteration.lower(*arguments).compile().memory_analysis()
        kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return (kept + analysis.temp_size_in_bytes) // len(self.members)

    def _arguments(self) -> tuple[Any, ...]:
        return self._identity, self.population, np.uint32(self.step)

    def _hyperparameters(self) -> dict[str, np.ndarray]:
        """The hyperparameters that differ in any member, with the values of all members, ``[M]`` by name."""
        names = sorted({name for member in self.members for name in member.hyperparameters})
        agent = self.config.agent
        of = {name: [m.hyperparameters.get(name, getattr(agent, name)) for m in self.members] for name in names}
        return {name: np.asarray(jnp.asarray(values)) for name, values in of.items()}

    def _program(
        self, function: Callable[..., Any], shared: Sequence[bool] = (False, False, True), donate: int | None = None
    ) -> Any:
        """Jits ``function(identity[, population, step])``; see :meth:`Distribution.program`."""

        def of_one_device(identity: Identity, *rest: Any) -> Any:
            return function(identity._replace(key=jax.random.wrap_key_data(identity.key)), *rest)

        return self._distribution.program(of_one_device, shared, donate)

    def advance(self) -> Infos:
        """See :meth:`Trainer.advance`."""
        config = self.config
        self.population, report = self._iterate(*self._arguments())
        infos, episodes, returns, broken = local(report)
        self.step += config.update_every
        self.interval.add_episodes(episodes, returns)
        self.broken_episodes += int(broken.sum())
        if self._diagnose and self.step >= config.update_after and self.step % config.diagnose_every == 0:
            self.interval.add_diagnosis(local(self._diagnose(*self._arguments())))
        return self._record(infos if self.step >= config.update_after else {}, local(self.population.running))

    def label(self, s: int) -> str:
        """A text that identifies a member in messages: its seed and its hyperparameter overrides."""
        numbers = self.members[s].hyperparameters.items()
        return ", ".join([f"seed {self.seeds[s]}", *(f"{name} {value:g}" for name, value in numbers)])

    def play(self, should_stop: Callable[[], bool]) -> tuple[Evaluation, np.ndarray] | None:
        """See :meth:`Trainer.play`.

        The evaluation is one compiled program, so ``should_stop`` is only called before it starts.
        """
        if should_stop():
            return None
        evaluation, values = local(self._play(*self._arguments()))
        if count := int(evaluation.broken.sum()):
            self.notices.append(Notice(
                f"warning: the simulation of {self.config.env.id} diverged in {count} of {evaluation.broken.size} "
                f"evaluation episodes after step {self.step}; their returns end there"
            ))  # fmt: skip
        return evaluation, values

    def arrays(self) -> Arrays:
        """See :meth:`Trainer.arrays`.

        With several processes these are global arrays of all members.
        """
        interval = {f"interval.{name}": array for name, array in self.interval.arrays().items()}
        fetch: Callable[[Any], Any] = local
        if jax.process_count() > 1:  # JAX has no float64 by default, so float64 is distributed as pairs of uint32
            spread = self._distribution.spread
            interval = {n: spread(array.view(np.uint32)) if array.ndim else array for n, array in interval.items()}
            fetch = lambda leaf: leaf  # noqa: E731
        due = np.asarray(self.evaluation_due)
        arrays = {"step": np.asarray(self.step), "evaluation_due": due, **interval}
        held = min(self.step, self.config.replay_capacity)
        for field, tree in self.population._asdict().items():
            for name, leaf in base.named_leaves(tree, field):
                arrays[name] = fetch(leaf)[:, :held] if field == "replay" else fetch(leaf)
        return arrays

    def record(self) -> dict[str, Any]:
        """See :meth:`Trainer.record`; that of a population also has its members, in the order of the arrays."""
        if self._planned is None:
            return super().record()
        members = [{"seed": m.seed, "hyperparameters": dict(m.hyperparameters)} for m in self._planned]
        return {**super().record(), "members": members}

    def restore(self, arrays: Arrays) -> None:
        """See :meth:`Trainer.restore`."""
        arrays = {"running": np.ones(len(self.members), bool), **arrays}  # missing in older checkpoints
        spread = [name for name, array in arrays.items() if isinstance(array, jax.Array)]
        arrays = {name: local(array) if name in spread else array for name, array in arrays.items()}
        self.step, self.evaluation_due = int(arrays["step"]), bool(arrays.get("evaluation_due", False))
        interval = {n: array.view(np.float64) if n in spread else array for n, array in arrays.items()
                    if n.startswith("interval.")}  # fmt: skip
        self.interval.restore(base.below(interval, "interval."))
        free = self.config.replay_capacity - min(self.step, self.config.replay_capacity)
        whole = {
            name: np.pad(array, [(0, 0), (0, free)] + [(0, 0)] * (array.ndim - 2))
            for name, array in arrays.items()
            if name.startswith("replay.")
        }
        fields = {name: local_shapes(tree) for name, tree in self.population._asdict().items()}
        restored = [base.restore_tree(like, {**arrays, **whole}, field) for field, like in fields.items()]
        self.population = self._distribution.spread(Population(*restored))
        self.running = local(self.population.running)
