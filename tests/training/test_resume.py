"""Runs that are stopped and go on."""

import dataclasses

import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.loop import run
from tests import probes
from tests.training.host_runs import compiled, config, small, stop_in_the_evaluation_after, trained, whole_run
from tests.training.runs import AGENT, Recorder, assert_same, check_resume, diagnosed_steps, run_compiled

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("env_id", "stop_at"),
    [("ProbeDelayed-v0", 30), ("ProbeDelayed-v0", 100), ("ProbeDelayed-v0", 130), ("Hopper-v5", 130)],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(env_id, stop_at):
    _, whole, saved, _ = whole_run(config(env_id, num_seeds=2))
    _, first, partial, finished = trained(config(env_id, num_seeds=2), stop_at=stop_at)
    assert not finished
    _, second, resumed, _ = trained(config(env_id, num_seeds=2), arrays=partial[stop_at])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)
    assert_same(resumed[200], saved[200])


@pytest.mark.parametrize("asked", [9, 10, 22])  # before the first step of an evaluation, in it, and in the last one
def test_a_run_that_was_stopped_during_an_evaluation_makes_it_again(asked):
    trainer, start = compiled(config("ProbeDelayed-v0"))
    whole = whole_run(config("ProbeDelayed-v0"))[1]
    _, first, partial, finished = run_compiled(trainer, start, should_stop=stop_in_the_evaluation_after(asked))
    step = max(partial)
    assert not finished
    assert step not in [row["step"] for row in first.rows]
    _, second, *_ = run_compiled(trainer, partial[step])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)


def test_a_checkpoint_comes_before_the_evaluation_of_its_step_which_may_never_end():
    trainer, saved, asked = HostTrainer(config("ProbeEndless-v0")), [], []
    trainer.compile()
    stop = lambda: asked.append(None) or len(asked) > 50  # noqa: E731
    assert not run(trainer, Recorder(), save=lambda t: saved.append((t.step, len(asked))), should_stop=stop)
    assert saved[0] == (100, 9)  # after the first nine bursts, and before the evaluation
    assert len(asked) > 50


def test_a_run_that_gets_longer_is_one_that_was_that_long_from_the_start():
    whole = whole_run(config("ProbeDelayed-v0", total_steps=300))
    shorter = whole_run(config("ProbeDelayed-v0", total_steps=200))
    longer = trained(config("ProbeDelayed-v0", total_steps=300), arrays=shorter[2][200])
    np.testing.assert_equal(shorter[1].rows[:1] + longer[1].rows, whole[1].rows)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_goes_on_bit_for_bit(name):
    env_id = "ProbeChoice-v0" if AGENTS[name].discrete else "ProbeDelayed-v0"
    check_resume(HostTrainer(config(env_id, agent=small(name), num_seeds=2)), stop_at=130)


def test_targets_of_several_steps_and_held_out_alignment_go_on_bit_for_bit():
    rows = check_resume(HostTrainer(config("ProbeDelayed-v0", n_step=3, measure_alignment=True)), stop_at=130)
    assert {"update_alignment", "heldout_alignment"} <= rows[-1].keys()


def test_diagnoses_come_at_their_interval():
    assert diagnosed_steps(HostTrainer(config("ProbeDelayed-v0", diagnose_every=40))) == [80, 120, 160, 200]


def test_a_stop_loses_no_diagnoses():
    trainer = HostTrainer(config("ProbeDelayed-v0", num_seeds=2, diagnose_every=20))
    for row in check_resume(trainer, stop_at=130):
        assert {"row_ratio", "effective_rank", *FailureModes._fields} <= row.keys()
        assert 0 <= row["row_ratio"] <= 1
        assert 1 <= row["effective_rank"] <= 16


def test_arrays_of_another_configuration_are_refused():
    *_, saved, _ = trained(config())
    other = HostTrainer(config(agent=dataclasses.replace(AGENT, hidden_sizes=(8, 8))))
    other.compile()
    with pytest.raises(CheckpointError, match="another configuration"):
        other.restore(saved[100])


def forgetful(hidden):
    env = EnvConfig("ProbeForgetful-v0", kwargs={"hidden": hidden})
    return dataclasses.replace(config(num_seeds=2), env=env)


@pytest.mark.parametrize("hidden", ["observation", "reward", "error"])
def test_an_environment_that_does_not_repeat_itself_resumes_with_a_new_episode_and_says_so(hidden, monkeypatch):
    monkeypatch.setattr(probes.ForgetfulProbe, "before", 0)
    _, first, saved, _ = trained(forgetful(hidden), stop_at=110)
    assert saved[110]["env.0.actions"].shape[0] == 2  # in the middle of an episode
    monkeypatch.setattr(probes.ForgetfulProbe, "before", -1000)  # another process
    trainer, recorder, _, finished = trained(forgetful(hidden), arrays=saved[110])
    assert finished
    assert [row["step"] for row in first.rows + recorder.rows] == [100, 100, 200, 200]
    (message,) = recorder.messages
    (event,) = recorder.events
    seeds = [0] if hidden == "error" else [0, 1]
    assert f"seed {', '.join(map(str, seeds))} resumes with a new episode" in message
    assert event == {"event": "resumed with a new episode", "step": 110, "seeds": seeds}
    assert trainer.envs[0].episode.number == saved[110]["env.0.number"] + 1 + (200 - 110) // 4


def test_only_the_environment_that_does_not_reach_its_state_begins_a_new_episode():
    _, _, saved, _ = trained(config("Hopper-v5", num_seeds=2), stop_at=110)
    other = saved[110]["observation"] + np.array([[0.0], [1.0]], np.float32)
    trainer = HostTrainer(config("Hopper-v5", num_seeds=2))
    trainer.compile()
    trainer.restore({**saved[110], "observation": other})
    assert [notice.event["seeds"] for notice in trainer.notices] == [[1]]
    np.testing.assert_array_equal(trainer.observation[0], saved[110]["observation"][0])
    assert trainer.envs[1].episode.actions.size == trainer.returns[1] == 0
    newest = trainer.replay.position - 1  # an n-step target must not go on in the new episode
    assert not saved[110]["replay.last"][:, newest].any()
    assert trainer.replay.last[:, newest].tolist() == [False, True]


def test_running_statistics_of_a_wrapper_are_told_and_resuming_works():
    _, first, saved, _ = trained(config("ProbeNormalized-v0"), stop_at=110)
    (message,) = first.messages
    assert "ProbeNormalized-v0 keeps running statistics (NormalizeObservation) in each environment" in message
    _, second, *_ = trained(config("ProbeNormalized-v0"), arrays=saved[110])
    assert [row["step"] for row in second.rows] == [200]
    assert "resumes with a new episode" in second.messages[1]
