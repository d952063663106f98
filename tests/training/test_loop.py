import dataclasses

import jax
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from preqn_jax.training.base import Interval
from preqn_jax.training.host import HostTrainer
from preqn_jax.training.loop import run
from tests.helpers import assert_for_some_seed
from tests.training.host_runs import config, small, stop_in_the_evaluation_after, trained, whole_run
from tests.training.runs import AGENT, Recorder

pytestmark = pytest.mark.slow


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


def test_an_evaluation_at_the_end_of_a_run_has_episodes_of_its_own():
    trainer = HostTrainer(config("Pendulum-v1", evaluate_every=20))
    trainer.compile()
    starts = []
    for step in (20, 30, 40, 60):
        trainer.step = step
        starts.append(trainer.play(lambda: False)[0].first_observation)
    assert len({start.tobytes() for start in starts}) == 4


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


def test_measuring_the_alignment_leaves_the_run_as_it_is():
    # With the paper's threshold of 0.97, rounding would decide about some of these steps; XLA compiles two programs.
    agent = dataclasses.replace(AGENT, min_alignment=0.5)
    plain, measured = (
        whole_run(config("ProbeDelayed-v0", agent=agent, measure_alignment=on))[1].rows for on in (False, True)
    )
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


def test_targets_of_n_steps_end_at_a_time_limit_and_bootstrap_there():
    env = EnvConfig("ProbeEndless-v0", time_limit=3)
    trainer = HostTrainer(dataclasses.replace(config(n_step=2), env=env))
    trainer.compile()
    for _ in range(30):
        trainer.collect()
    batch = trainer._draw(1)
    last = batch.reward == 1.0
    assert 0 < last.mean() < 1
    np.testing.assert_array_equal(batch.reward[~last], 1.5)
    np.testing.assert_array_equal(batch.discount, np.where(last, 1.0, 0.5))


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


def test_an_interval_without_episodes_or_updates_has_no_means():
    row = Interval(1, ["q"], ["row_ratio"]).row(0)
    assert row["train_episodes"] == row["updates"] == 0
    assert np.isnan(row["train_return"])
    assert np.isnan(row["q"])
