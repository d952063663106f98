import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.ops import ntk
from preqn_jax.ops.diagnostics import FailureModes
from preqn_jax.settings import SettingError
from preqn_jax.training.base import Interval
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.config import Config
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.loop import StallWatch, run
from preqn_jax.types import NonFiniteError
from tests import probes  # registers the probes
from tests.helpers import assert_for_some_seed
from tests.training.runs import AGENT, SCHEDULE, Recorder, trained_by

pytestmark = pytest.mark.slow


def config(env_id="ProbeOne-v0", **changes):
    return Config(agent=changes.pop("agent", AGENT), env=EnvConfig(env_id), **{**SCHEDULE, **changes})


def trained(configuration, *arguments, **options):
    return trained_by(HostTrainer(configuration), *arguments, **options)


@functools.cache
def whole_run(configuration):
    """A run that nothing stopped, made once for all tests that compare with it; none may change it."""
    return trained(configuration)


def q_values(trainer, observation, action):
    from preqn_jax.networks import Critic

    critic = Critic(trainer.config.agent.hidden_sizes)
    params = jax.tree.map(lambda leaf: leaf[0], trainer.state.critic)
    return np.asarray(critic.apply(params, np.array(observation, np.float32), np.array(action, np.float32)))


GRID = np.stack(np.meshgrid([-1.0, 1.0], np.linspace(-1, 1, 5)), -1).reshape(-1, 2)  # coin and action


@pytest.mark.parametrize(
    ("env_id", "time_left", "value"),
    [
        ("ProbeOne-v0", 1.0, 1.0),  # the reward, and nothing after the end
        ("ProbeTruncated-v0", 0.0, None),  # the successor's value counts: see below
        ("ProbeDelayed-v0", 1.0, 0.5),  # gamma times the reward that follows
        ("ProbeDelayed-v0", 0.5, 1.0),
    ],
)
def test_the_critic_learns_the_known_value(env_id, time_left, value):
    assert_for_some_seed(lambda seed: check_value(env_id, time_left, value, seed))


def check_value(env_id, time_left, value, seed):
    if value is None:  # Q(1) = 1 + gamma Q(0), and Q(0) is never visited: the two must agree, whatever Q(0) is
        trainer, *_ = trained(config(env_id, total_steps=1000, seed=seed))
        now = q_values(trainer, [[1.0, 1.0]] * 5, np.linspace(-0.9, 0.9, 5)[:, None])
        policy = np.asarray(trainer.act(trainer.state, np.array([[[0.0, 1.0], [0.0, -1.0]]], np.float32)))[0]
        then = q_values(trainer, [[0.0, 1.0], [0.0, -1.0]], policy).mean()
        np.testing.assert_allclose(now, 1.0 + 0.5 * then, atol=0.1)
        assert abs(then) > 0.05  # else this could not tell truncation from termination
        return
    trainer, *_ = whole_run(config(env_id, total_steps=1000, seed=seed))
    observation = np.stack([np.full(len(GRID), time_left), GRID[:, 0]], -1)
    np.testing.assert_allclose(q_values(trainer, observation, GRID[:, 1:]), value, atol=0.1)


def small(name):
    """Settings under which two thousand updates are enough."""
    settings = {"hidden_sizes": (16, 16), "gamma": 0.5}
    if not name.startswith("preqn"):
        settings |= {"critic_learning_rate": 1e-2}
    if name == "sac":
        settings |= {"temperature": 0.01}
    return AGENTS[name](**settings)


@pytest.mark.parametrize("name", [name for name in AGENTS if not AGENTS[name].discrete])
def test_the_actor_finds_the_best_action(name):
    def check(seed):
        trainer, recorder, *_ = trained(config("ProbeAction-v0", agent=small(name), total_steps=2000, seed=seed))
        # 4 in a box from -2 to 6 is 0.5 in [-1, 1].
        action = trainer.act(trainer.state, np.array([[[1.0, -1.0], [1.0, 1.0]]], np.float32))
        np.testing.assert_allclose(np.asarray(action).ravel(), 0.5, atol=0.1)
        row = recorder.rows[-1]
        assert row["return_mean"] > 0.98
        np.testing.assert_allclose(row["first_q"], row["discounted_return"], atol=0.1)

    assert_for_some_seed(check)


@pytest.mark.parametrize("name", [name for name in AGENTS if AGENTS[name].discrete])
def test_the_best_of_discrete_actions_is_found(name):
    def check(seed):
        row = trained(config("ProbeChoice-v0", agent=small(name), total_steps=1000, seed=seed))[1].rows[-1]
        assert row["return_mean"] == 1.0
        np.testing.assert_allclose(row["first_q"], 1.0, atol=0.1)

    assert_for_some_seed(check)


@pytest.mark.parametrize(
    ("env_id", "name", "allowed"),
    [
        ("ProbeChoice-v0", "preqn", "preqn_dqn, dqn, naive_dqn"),
        ("ProbeOne-v0", "preqn_dqn", "preqn, preqn_norm, td3, sac, ddpg, naive_ddpg"),
    ],
)
def test_an_agent_for_the_other_kind_of_actions_is_refused(env_id, name, allowed):
    with pytest.raises(SettingError, match=rf"which {name} does not support; allowed agents: {allowed}$"):
        HostTrainer(config(env_id, agent=small(name)))


def test_the_value_claimed_at_the_first_state_stands_beside_the_discounted_return():
    def check(seed):
        row = whole_run(config("ProbeDelayed-v0", total_steps=1000, seed=seed))[1].rows[-1]
        assert row["return_mean"] == 1.0
        assert row["discounted_return"] == 0.5  # gamma times the reward that follows
        np.testing.assert_allclose(row["first_q"], 0.5, atol=0.1)

    assert_for_some_seed(check)


def test_the_schedule():
    trainer, recorder, saved, finished = trained(config())
    assert finished
    assert [row["step"] for row in recorder.rows] == [100, 200]
    assert [row["updates"] for row in recorder.rows] == [60, 100]  # bursts at 50, 60, .. 100; then ten more
    assert [row["train_episodes"] for row in recorder.rows] == [100, 100]  # episodes of one step
    assert list(saved) == [100, 200]
    assert recorder.steps == list(range(10, 201, 10))
    assert trainer.replay.size == 150


def test_the_columns_are_the_same_before_the_first_update():
    rows = trained(config(evaluate_every=40))[1].rows
    assert rows[0]["updates"] == 0
    assert np.isnan(rows[0]["alignment"])
    assert len({tuple(row) for row in rows}) == 1


def test_random_actions_first_then_the_policy():
    trainer = HostTrainer(config("Pendulum-v1", start_steps=100, update_after=200))
    trainer.compile()
    for _ in range(150):
        trainer.collect()
    actions = trainer.replay.data.action[0, :, 0]
    assert np.abs(actions[:100]).mean() > 0.4  # uniform on [-1, 1]
    np.testing.assert_array_less(np.abs(np.diff(actions[100:150])), 0.9)  # a smooth policy with little noise


def test_what_is_stored_is_what_happened():
    trainer = HostTrainer(config("ProbeDelayed-v0"))
    trainer.compile()
    for _ in range(4):
        trainer.collect()
    data = trainer.replay.data
    np.testing.assert_array_equal(data.observation[0, :4, 0], [1.0, 0.5, 1.0, 0.5])
    np.testing.assert_array_equal(data.next_observation[0, :4, 0], [0.5, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(data.reward[0, :4], [0.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(data.discount[0, :4], [1.0, 0.0, 1.0, 0.0])


def test_a_time_limit_keeps_the_discount():
    trainer = HostTrainer(config("ProbeTruncated-v0"))
    trainer.compile()
    for _ in range(3):
        trainer.collect()
    np.testing.assert_array_equal(trainer.replay.data.discount[0, :3], 1.0)


def test_nothing_compiles_after_the_first_burst():
    traces = []
    trainer = HostTrainer(config())
    agent = trainer.agent
    trainer.agent = agent._replace(
        update=lambda *a: traces.append("update") or agent.update(*a),
        explore=lambda *a: traces.append("explore") or agent.explore(*a),
        act=lambda *a: traces.append("act") or agent.act(*a),
    )
    trainer.compile()
    before = len(traces)
    run(trainer, Recorder(), save=lambda t: t.arrays(), should_stop=lambda: False)
    assert before > 0
    assert len(traces) == before


def test_seeds_side_by_side_learn_what_they_learn_alone():
    short = {"total_steps": 100, "evaluate_every": 50}  # before differences of rounding decide whether a step passes
    together = trained(config("ProbeDelayed-v0", num_seeds=2, seed=5, **short))[1].rows
    alone = [row for seed in (5, 6) for row in trained(config("ProbeDelayed-v0", seed=seed, **short))[1].rows]
    key = lambda row: (row["seed"], row["step"])  # noqa: E731
    for ours, theirs in zip(sorted(together, key=key), sorted(alone, key=key), strict=True):
        assert list(ours) == list(theirs)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)
    assert together[-1]["q"] != together[-2]["q"]


@pytest.mark.parametrize(
    ("env_id", "stop_at"),
    [("ProbeDelayed-v0", 30), ("ProbeDelayed-v0", 100), ("ProbeDelayed-v0", 130), ("Hopper-v5", 130)],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(env_id, stop_at):
    _, whole, saved, _ = whole_run(config(env_id, num_seeds=2))
    _, first, partial, finished = trained(config(env_id, num_seeds=2), stop_at=stop_at)
    assert not finished
    _, second, resumed, _ = trained(config(env_id, num_seeds=2), arrays=partial[stop_at])
    for ours, theirs in zip(first.rows + second.rows, whole.rows, strict=True):
        np.testing.assert_equal(ours, theirs)
    for name, array in saved[200].items():
        np.testing.assert_array_equal(resumed[200][name], array, err_msg=name)


def stop_in_the_evaluation_after(asked):
    """A signal that comes with the question number ``asked``."""
    questions = iter(range(asked))
    return lambda: next(questions, None) is None


@pytest.mark.parametrize("asked", [9, 10, 22])  # before the first step of an evaluation, in it, and in the last one
def test_a_run_that_was_stopped_during_an_evaluation_makes_it_again(asked):
    whole = whole_run(config("ProbeDelayed-v0"))[1]
    _, first, partial, finished = trained(config("ProbeDelayed-v0"), should_stop=stop_in_the_evaluation_after(asked))
    step = max(partial)
    assert not finished
    assert step not in [row["step"] for row in first.rows]
    _, second, *_ = trained(config("ProbeDelayed-v0"), arrays=partial[step])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)


def test_a_checkpoint_comes_before_the_evaluation_of_its_step_which_may_never_end():
    trainer, saved, asked = HostTrainer(config("ProbeEndless-v0")), [], []
    trainer.compile()
    stop = lambda: asked.append(None) or len(asked) > 50  # noqa: E731
    assert not run(trainer, Recorder(), save=lambda t: saved.append((t.step, len(asked))), should_stop=stop)
    assert saved[0] == (100, 9)  # after the first nine bursts, and before the evaluation
    assert len(asked) > 50


def test_an_environment_without_a_time_limit_is_told_once_at_the_start():
    endless = dataclasses.replace(config("ProbeEndless-v0"), env=EnvConfig("ProbeEndless-v0", time_limit=3))
    limited = trained(endless)[1]
    assert [row["episode_length"] for row in limited.rows] == [3, 3]
    assert not limited.messages
    recorder = trained(config("ProbeEndless-v0"), should_stop=stop_in_the_evaluation_after(12))[1]
    (message,) = recorder.messages
    assert message == (
        "warning: ProbeEndless-v0 has no time limit: an episode that does not terminate never ends; "
        "set a limit with --config.env.time_limit=1000"
    )


def test_a_run_that_gets_longer_is_one_that_was_that_long_from_the_start():
    whole = whole_run(config("ProbeDelayed-v0", total_steps=300))
    shorter = whole_run(config("ProbeDelayed-v0", total_steps=200))
    longer = trained(config("ProbeDelayed-v0", total_steps=300), arrays=shorter[2][200])
    np.testing.assert_equal(shorter[1].rows[:1] + longer[1].rows, whole[1].rows)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_goes_on_bit_for_bit(name):
    env_id = "ProbeChoice-v0" if AGENTS[name].discrete else "ProbeDelayed-v0"
    configuration = config(env_id, agent=small(name), num_seeds=2)
    _, whole, saved, _ = trained(configuration)
    _, first, partial, _ = trained(configuration, stop_at=130)
    _, second, resumed, _ = trained(configuration, arrays=partial[130])
    for ours, theirs in zip(first.rows + second.rows, whole.rows, strict=True):
        np.testing.assert_equal(ours, theirs)
    for key, array in saved[200].items():
        np.testing.assert_array_equal(resumed[200][key], array, err_msg=key)


def test_targets_of_several_steps_and_held_out_alignment_go_on_bit_for_bit():
    configuration = config("ProbeDelayed-v0", n_step=3, measure_alignment=True)
    _, whole, _, _ = trained(configuration)
    _, first, partial, _ = trained(configuration, stop_at=130)
    _, second, *_ = trained(configuration, arrays=partial[130])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)
    assert {"update_alignment", "heldout_alignment"} <= whole.rows[-1].keys()


def test_measuring_the_alignment_leaves_the_run_as_it_is():
    plain, measured = (whole_run(config("ProbeDelayed-v0", measure_alignment=on))[1].rows for on in (False, True))
    for ours, theirs in zip(measured, plain, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_targets_sum_the_rewards_of_n_steps():
    trainer = HostTrainer(config("ProbeDelayed-v0", n_step=2))
    trainer.compile()
    for _ in range(20):
        trainer.collect()
    batch = trainer._draw(1)
    first = batch.observation[..., 0] == 1.0
    np.testing.assert_array_equal(batch.reward, np.where(first, 0.5, 1.0))  # gamma times the reward at the end
    np.testing.assert_array_equal(batch.discount, 0.0)


def test_updates_per_step_multiplies_the_gradient_steps():
    _, recorder, *_ = trained(config("ProbeDelayed-v0", updates_per_step=2))
    assert [row["updates"] for row in recorder.rows] == [2 * 60, 2 * 100]  # since the evaluation before


def test_statistics_are_of_every_observation_collected():
    agent = AGENTS["preqn_norm"](hidden_sizes=(16, 16))
    trainer, *_ = trained(config("ProbeDelayed-v0", agent=agent, total_steps=100, num_seeds=2))
    for s in range(2):
        seen = trainer.replay.data.observation[s, :100]
        np.testing.assert_allclose(trainer.state.statistics.mean[s], seen.mean(0), atol=1e-5)
        np.testing.assert_allclose(trainer.state.statistics.deviation[s], seen.std(0), rtol=0.05)
        assert trainer.state.statistics.total[s] == 100


def test_diagnoses_come_at_their_interval_and_a_stop_loses_none():
    configuration = config("ProbeDelayed-v0", num_seeds=2, diagnose_every=20, total_steps=200)
    _, whole, *_ = trained(configuration)
    for row in whole.rows:
        assert {"row_ratio", "effective_rank", *FailureModes._fields} <= row.keys()
        assert 0 <= row["row_ratio"] <= 1
        assert 1 <= row["effective_rank"] <= 16
    _, first, partial, _ = trained(configuration, stop_at=130)
    _, second, *_ = trained(configuration, arrays=partial[130])
    np.testing.assert_equal(first.rows + second.rows, whole.rows)


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


def test_running_statistics_of_a_wrapper_are_told_and_resuming_works():
    _, first, saved, _ = trained(config("ProbeNormalized-v0"), stop_at=110)
    (message,) = first.messages
    assert "ProbeNormalized-v0 keeps running statistics (NormalizeObservation) in each environment" in message
    _, second, *_ = trained(config("ProbeNormalized-v0"), arrays=saved[110])
    assert [row["step"] for row in second.rows] == [200]
    assert "resumes with a new episode" in second.messages[1]


FAULTS = [("reward", np.nan), ("reward", -np.inf), ("reward", 1e39), ("reward", 1e30),
          ("observation", np.nan), ("observation", np.inf), ("observation", -1e39)]  # fmt: skip


@pytest.mark.parametrize(("quantity", "value"), FAULTS)
def test_what_float32_cannot_hold_ends_the_run_in_the_step_in_which_it_comes(quantity, value, monkeypatch):
    # Two seeds: 100 steps, two evaluation episodes of three steps each, and 13 steps, the last with the fault.
    for name, setting in {"steps": 0, "at": 2 * (100 + 6 + 13) - 1, "quantity": quantity, "value": value}.items():
        monkeypatch.setattr(probes.FaultyProbe, name, setting)
    trainer, saved = HostTrainer(config("ProbeFaulty-v0", num_seeds=2)), {}
    trainer.compile()
    save = lambda t: saved.update({t.step: {name: np.array(a) for name, a in t.arrays().items()}})  # noqa: E731
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
    assert trained(config("ProbeFaulty-v0", num_seeds=2), arrays=saved[100])[3]  # it does not come again


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


def test_a_seed_that_diverges_is_stopped_and_reported_and_the_other_goes_on_as_without_it(monkeypatch):
    configuration = config("ProbeDelayed-v0", num_seeds=2)
    whole = trained(configuration)[1]
    monkeypatch.setattr(f"{__name__}.HostTrainer", Poisoned)
    trainer, recorder, saved, finished = trained(configuration)
    assert finished
    np.testing.assert_equal(recorder.rows[::2], whole.rows[::2])
    assert recorder.rows[1::2] == [None, None]
    (message,), (event,) = recorder.messages, recorder.events
    reason = event.pop("reason")
    assert event == {"event": "stopped", "step": 60, "seed": 1, "member": 1}
    assert re.fullmatch(r"\w+ of seed 1 is not finite before step 60", reason)
    assert message == f"warning: stopped: seed 1: {reason}; the others continue, and config.json records this"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state))
    _, second, resumed, _ = trained(configuration, arrays=saved[100])
    np.testing.assert_equal(second.rows, recorder.rows)
    assert not second.events
    for name, array in saved[200].items():
        np.testing.assert_array_equal(resumed[200][name], array, err_msg=name)


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

    for _ in range(19):
        burst(0.0)
    burst(1.0)  # one good burst starts the count anew
    for _ in range(19):
        burst(0.0)
    assert not recorder.messages
    burst(0.0)
    burst(0.0)
    assert len(recorder.messages) == 1
    assert "ntk.check_example_by_example(q_fn, params, inputs)" in recorder.messages[0]
    assert hasattr(ntk, "check_example_by_example")
    assert "solver=ridge" in recorder.messages[0]


def test_a_stall_happens_with_a_solver_that_cuts_off_too_much():
    agent = dataclasses.replace(AGENT, solver="lstsq", rcond=0.5, min_alignment=0.9999)
    recorder = trained(config("Pendulum-v1", agent=agent, total_steps=1200, evaluate_every=1200))[1]
    (message,) = recorder.messages
    assert message.startswith("warning: under 10% of the critic steps were accepted in the last 1000 updates")


def test_an_interval_without_episodes_or_updates_has_no_means():
    row = Interval(1, ["q"], ["row_ratio"]).row(0)
    assert row["train_episodes"] == row["updates"] == 0
    assert np.isnan(row["train_return"])
    assert np.isnan(row["q"])
