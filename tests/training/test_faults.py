"""Values that are not finite, stalls, and checkpoints that cannot be written."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.ops import ntk
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.loop import StallWatch, run
from preqn_jax.types import NonFiniteError
from tests import probes
from tests.training.host_runs import compiled, config, trained
from tests.training.runs import AGENT, Recorder, assert_same, copied, run_compiled, trained_by

pytestmark = pytest.mark.slow


FAULTS = [("reward", np.nan), ("reward", -np.inf), ("reward", 1e39), ("reward", 1e30),
          ("observation", np.nan), ("observation", np.inf), ("observation", -1e39)]  # fmt: skip


@pytest.mark.parametrize(("quantity", "value"), FAULTS)
def test_what_float32_cannot_hold_ends_the_run_in_the_step_in_which_it_comes(quantity, value, monkeypatch):
    # Two seeds: 100 steps, two evaluation episodes of three steps each, and 13 steps, the last with the fault.
    for name, setting in {"steps": 0, "at": 2 * (100 + 6 + 13) - 1, "quantity": quantity, "value": value}.items():
        monkeypatch.setattr(probes.FaultyProbe, name, setting)
    trainer, start = compiled(config("ProbeFaulty-v0", num_seeds=2))
    trainer.restore(start)
    saved = {}
    save = lambda t: saved.update({t.step: copied(t.arrays())})  # noqa: E731
    with pytest.raises(NonFiniteError) as error:
        run(trainer, Recorder(), save=save, should_stop=lambda: False)
    with np.errstate(over="ignore"):
        article, value = ("an", np.float32(value)) if quantity == "observation" else ("a", value)
    assert str(error.value) == (
        f"ProbeFaulty-v0 returned {article} {quantity} with the value {value:g} for seed 0 in step 2 of episode 37, in "
        "step 113 of the run"
    )
    assert trainer.step == 112
    assert all(np.isfinite(leaf).all() for leaf in trainer.replay.data)
    monkeypatch.setattr(probes.FaultyProbe, "at", -1)
    assert run_compiled(trainer, saved[100])[3]  # it does not come again


def test_a_fault_in_an_evaluation_or_at_a_reset_is_told_too(monkeypatch):
    monkeypatch.setattr(probes.FaultyProbe, "steps", 0)
    monkeypatch.setattr(probes.FaultyProbe, "at", 102)
    with pytest.raises(NonFiniteError, match="for seed 0 in step 1 of episode 3, in the evaluation after step 100"):
        trained(config("ProbeFaulty-v0"))
    monkeypatch.setattr(probes.FaultyProbe, "quantity", "observation")
    monkeypatch.setattr(probes.FaultyProbe, "at", probes.FaultyProbe.steps)
    with pytest.raises(NonFiniteError, match="an observation with the value nan for seed 0 in step 0 of episode 0"):
        HostTrainer(config("ProbeFaulty-v0"))


def test_a_non_finite_value_ends_the_run_before_anything_is_saved():
    trainer, saved = HostTrainer(config()), []
    agent = trainer.agent

    def poisoned(state, transitions, key):
        state, info = agent.update(state, transitions, key)
        return state, {**info, "actor_loss": info["actor_loss"] + np.nan}

    trainer.agent = agent._replace(update=poisoned)
    trainer.compile()
    with pytest.raises(NonFiniteError, match="ProbeOne-v0: actor_loss of seed 0 is not finite before step 50"):
        run(trainer, Recorder(), save=saved.append, should_stop=lambda: False)
    assert not saved


class Poisoned(HostTrainer):
    """Its second seed has a reward in its buffer after step 60 that no update survives."""

    def learn(self):
        if self.step == 60:
            self.replay.data.reward[1] = np.nan
        return super().learn()


def test_a_seed_that_diverges_is_stopped_and_reported_and_the_other_goes_on_as_without_it():
    configuration = config("ProbeDelayed-v0", num_seeds=2)
    whole = trained(configuration)[1]
    trainer, recorder, saved, finished = trained_by(Poisoned(configuration))
    assert finished
    np.testing.assert_equal(recorder.rows[::2], whole.rows[::2])
    assert recorder.rows[1::2] == [None, None]
    (message,), (event,) = recorder.messages, recorder.events
    reason = event.pop("reason")
    assert event == {"event": "stopped", "step": 60, "seed": 1, "member": 1}
    assert re.fullmatch(r"\w+ of seed 1 is not finite before step 60", reason)
    assert message == f"warning: stopped: seed 1: {reason}; the others continue, and config.json records this"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state))
    _, second, resumed, _ = run_compiled(trainer, saved[100])
    np.testing.assert_equal(second.rows, recorder.rows)
    assert not second.events
    assert_same(resumed[200], saved[200])


def test_a_seed_that_was_stopped_keeps_its_statistics():
    agent = AGENTS["preqn_norm"](hidden_sizes=(16, 16))
    trainer = HostTrainer(config("ProbeDelayed-v0", agent=agent, num_seeds=2))
    trainer.compile()
    trainer.running[1] = False
    before = copied(trainer.arrays())
    trainer.advance()
    assert trainer.state.statistics.total.tolist() == [10, 0]
    after = trainer.arrays()
    for name in before:
        if name.startswith("agent.statistics"):
            np.testing.assert_array_equal(after[name][1], before[name][1], err_msg=name)


def test_a_parameter_that_is_not_finite_ends_the_run_before_a_checkpoint_has_it():
    trainer, saved = HostTrainer(config(checkpoint_every=50)), []
    agent = trainer.agent

    def broken(state, transitions, key):  # with infos that look well
        state, info = agent.update(state, transitions, key)
        return state._replace(actor=jax.tree.map(lambda leaf: leaf * np.nan, state.actor)), info

    trainer.agent = agent._replace(update=lambda *a: (broken(*a)[0], jax.tree.map(jax.numpy.zeros_like, broken(*a)[1])))
    trainer.compile()
    with pytest.raises(NonFiniteError, match="an observation or a parameter of seed 0 is not finite before step 50"):
        run(trainer, Recorder(), save=saved.append, should_stop=lambda: False)
    assert not saved


def test_a_checkpoint_that_cannot_be_written_is_one_warning_unless_it_is_the_last():
    def attempt(failing):
        trainer, recorder, tried = HostTrainer(config()), Recorder(), []
        trainer.compile()

        def save(trainer):
            tried.append(trainer.step)
            if trainer.step in failing:
                raise CheckpointError(f"checkpoint {trainer.step} cannot be written")

        try:
            return run(trainer, recorder, save, lambda: False), recorder, tried
        except CheckpointError as error:
            return str(error), recorder, tried

    finished, recorder, tried = attempt(failing=[100])
    assert finished is True
    assert tried == [100, 200]
    assert recorder.messages == ["warning: checkpoint 100 cannot be written; the run continues"]
    error, recorder, _ = attempt(failing=[100, 200])
    assert error == "checkpoint 200 cannot be written"
    assert [row["step"] for row in recorder.rows] == [100, 200]


def test_a_stall_is_told_once_with_its_remedy():
    recorder = Recorder()
    watch = StallWatch(recorder)

    def burst(accepted):
        watch.watch({"accepted": np.array([[1.0] * 50, [accepted] * 50]), "predicted_alignment": np.full((2, 50), 0.9)})

    for accepted in [1.0] * 2 + [0.0] * 18:  # exactly a tenth
        burst(accepted)
    for _ in range(19):
        burst(0.0)
    assert not recorder.messages
    burst(0.0)
    burst(0.0)
    assert len(recorder.messages) == 1
    assert "ntk.check_example_by_example(q_fn, params, inputs)" in recorder.messages[0]
    assert hasattr(ntk, "check_example_by_example")
    assert "solver=ridge" in recorder.messages[0]


@pytest.mark.parametrize(("interval", "told"), [(33, True), (9, False)])
def test_a_stall_is_told_with_one_update_per_iteration_too(interval, told):
    recorder = Recorder()
    watch = StallWatch(recorder)
    for number in range(5000):
        accepted = np.array([[float(number % interval == 0)]])
        watch.watch({"accepted": accepted, "predicted_alignment": np.full((1, 1), 0.9)})
    assert len(recorder.messages) == told


def test_a_stall_happens_with_a_solver_that_cuts_off_too_much():
    agent = dataclasses.replace(AGENT, solver="lstsq", rcond=0.5, min_alignment=0.9999)
    recorder = trained(config("Pendulum-v1", agent=agent, total_steps=1200, evaluate_every=1200))[1]
    (message,) = recorder.messages
    assert message.startswith("warning: under 10% of the critic steps were accepted in the last 1000 updates")
