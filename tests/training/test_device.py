import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.envs import device
from preqn_jax.envs.config import EnvConfig
from preqn_jax.settings import SettingError
from preqn_jax.training.checkpoint import CheckpointError
from preqn_jax.training.config import Config
from preqn_jax.training.device import DeviceTrainer, Member
from preqn_jax.training.loop import run
from preqn_jax.types import NonFiniteError
from tests.device_probes import PROBES
from tests.helpers import assert_for_some_seed
from tests.training.runs import AGENT, SCHEDULE, Recorder, assert_same, diagnosed_steps, run_compiled, trained_by

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def probes(monkeypatch):
    def make(env):
        probe, time_limit = PROBES[env.id]
        return device.from_brax(probe, env.time_limit or time_limit)

    monkeypatch.setattr(device, "make", make)


def config(env_id="one", num_envs=2, time_limit=0, solver_iterations=0, **changes):
    env = EnvConfig(
        env_id, backend="brax", num_envs=num_envs, time_limit=time_limit, solver_iterations=solver_iterations
    )
    return Config(agent=changes.pop("agent", AGENT), env=env, **{**SCHEDULE, **changes})


def trained(configuration, arrays=None, stop_at=None, **options):
    return trained_by(DeviceTrainer(configuration, **options), arrays, stop_at=stop_at)


@functools.cache
def whole_run(configuration):
    """A run that nothing stopped, made once for all tests that compare with it; none may change it."""
    return trained(configuration)


@pytest.mark.parametrize(("env_id", "value"), [("delayed", 0.5), ("truncated", 1.75)])
def test_the_critic_finds_the_value(env_id, value):
    # A time limit cuts the third reward's future off from the return, but not from the value.
    expected = 2.0 if env_id == "truncated" else value

    def check(seed):
        row = trained(config(env_id, total_steps=1000, seed=seed))[1].rows[-1]
        np.testing.assert_allclose(row["first_q"], expected, atol=0.1)
        np.testing.assert_allclose(row["discounted_return"], value, rtol=1e-6)
        assert row["episode_length"] == PROBES[env_id][0]._length

    assert_for_some_seed(check)


@pytest.mark.parametrize("name", ["preqn", "sac"])  # of a deterministic and of a random policy
def test_the_actor_finds_the_best_action(name):
    other = {"critic_learning_rate": 1e-2, "temperature": 0.01} if name == "sac" else {}
    agent = AGENTS[name](hidden_sizes=(16, 16), gamma=0.5, **other)

    def check(seed):
        _, recorder, *_ = trained(config("action", agent=agent, total_steps=2000, evaluate_every=2000, seed=seed))
        assert recorder.rows[-1]["return_mean"] > 0.98

    assert_for_some_seed(check)


def test_the_schedule_and_a_checkpoint_of_another_configuration():
    trainer, recorder, saved, finished = trained(config(num_seeds=2))
    assert finished
    assert [(row["step"], row["seed"]) for row in recorder.rows] == [(100, 0), (100, 1), (200, 0), (200, 1)]
    assert [row["updates"] for row in recorder.rows] == [60, 60, 100, 100]  # bursts at 50, 60, .. 100; then ten more
    assert [row["train_episodes"] for row in recorder.rows] == [100] * 4  # episodes of one step
    assert list(saved) == [100, 200]
    assert recorder.steps == list(range(10, 201, 10))
    assert saved[100]["replay.transitions.reward"].shape == (2, 100)
    assert saved[200]["replay.transitions.reward"].shape == (2, 150)
    name = next(name for name in saved[100] if name.endswith("kernel"))
    with pytest.raises(CheckpointError, match="another configuration"):
        trainer.restore({**saved[100], name: saved[100][name][..., 1:]})


def test_nothing_is_traced_again_once_it_is_compiled(monkeypatch):
    traces, (probe, _) = [], PROBES["one"]
    original = probe.step
    monkeypatch.setattr(probe, "step", lambda *arguments: traces.append(1) or original(*arguments))
    trainer = DeviceTrainer(config())
    trainer.compile()
    before = len(traces)
    run(trainer, Recorder(), save=lambda t: t.arrays(), should_stop=lambda: False)
    assert len(traces) == before > 0


def test_nothing_is_learned_and_actions_are_uniform_at_the_start():
    trainer = DeviceTrainer(config("delayed", num_envs=5, start_steps=150, update_after=200))
    trainer.compile()
    first = trainer.population.agent
    before = jax.tree.map(np.array, first)
    for _ in range(15):
        assert trainer.advance() == {}
    jax.tree.map(np.testing.assert_array_equal, trainer.population.agent, before)
    actions = np.asarray(trainer.population.replay.transitions.action[0, :, 0])
    assert len(set(actions)) == 150
    assert abs(actions.mean()) < 0.15
    np.testing.assert_allclose(actions.std(), 1 / np.sqrt(3), atol=0.06)


def test_transitions_lead_to_the_true_successor_and_episodes_begin_anew():
    trainer = DeviceTrainer(config("truncated", num_envs=2))
    trainer.compile()
    for _ in range(3):
        trainer.advance()
    data = jax.tree.map(lambda leaf: np.asarray(leaf[0, :30]).reshape(15, 2, -1), trainer.population.replay.transitions)
    np.testing.assert_allclose(data.observation[:, 0, 0], np.tile([1, 2 / 3, 1 / 3], 5), rtol=1e-6)
    np.testing.assert_allclose(data.next_observation[:, 0, 0], np.tile([2 / 3, 1 / 3, 0], 5), atol=1e-6)
    np.testing.assert_array_equal(data.discount, 1.0)  # truncated, not terminated
    within = np.arange(15) % 3 != 2
    np.testing.assert_array_equal(data.observation[1:][within[:-1]], data.next_observation[:-1][within[:-1]])
    starts = data.observation[::3, :, 1]  # coins of first observations: of one cached state all would be the same
    assert len({tuple(coins) for coins in starts}) > 1
    assert trainer.interval.episodes.tolist() == [10.0]
    assert trainer.interval.episode_returns.tolist() == [30.0]


def test_termination_is_told_from_truncation():
    trainer = DeviceTrainer(config("delayed"))
    trainer.compile()
    trainer.advance()
    discount = np.asarray(trainer.population.replay.transitions.discount[0, :10]).reshape(5, 2)
    np.testing.assert_array_equal(discount, np.array([[1, 1], [0, 0], [1, 1], [0, 0], [1, 1]]))


@pytest.mark.parametrize("env_id", ["nan", "nan_and_done", "infinite_reward", "huge"])
def test_a_step_that_breaks_the_simulation_did_nothing(env_id):
    env = device.make(EnvConfig(env_id))
    keys, action = jax.random.split(jax.random.key(0), 2), np.zeros((2, 1), np.float32)
    before, first = env.step(env.reset(keys), action)
    after, outcome = device.step_and_restart(env, before, action, keys)
    assert not first.broken.any()
    assert outcome.broken.all()
    np.testing.assert_array_equal(outcome.observation, before.observation)
    np.testing.assert_array_equal(outcome.reward, 0.0)
    assert outcome.truncated.all()
    assert not outcome.terminated.any()
    np.testing.assert_array_equal(after.observation, env.reset(keys).observation)


def test_training_goes_on_where_simulations_break_and_says_so():
    trainer, recorder, *_ = trained(config("nan"))
    assert all(np.isfinite(leaf).all() for leaf in trainer.population.replay.transitions)
    assert [row["episode_length"] for row in recorder.rows] == [2, 2]
    assert [row["return_mean"] for row in recorder.rows] == [1, 1]
    assert trainer.broken_episodes == 100  # every second step
    first, second, *in_evaluations = recorder.messages
    assert (
        "the simulation of nan diverged (values not finite, or far too large) in 4 episode(s) before step 10;" in first
    )
    assert "in 40 episode(s)" in second
    assert in_evaluations == [
        f"warning: the simulation of nan diverged in 2 of 2 evaluation episodes after step {step}; "
        "their returns end there"
        for step in (100, 200)
    ]


@pytest.mark.parametrize("name", ["preqn", "preqn_norm"])  # the second has a counter and statistics in its state
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name):
    agent = AGENTS[name](hidden_sizes=(16, 16))
    more = {"n_step": 3, "measure_alignment": True} if name == "preqn_norm" else {}
    configuration = config("delayed", agent=agent, num_seeds=2, diagnose_every=50, **more)
    trainer, whole, saved, _ = trained(configuration)
    _, second, resumed, _ = run_compiled(trainer, saved[100])
    np.testing.assert_equal(second.rows, whole.rows)
    assert_same(resumed[200], saved[200])


def test_updates_per_step_multiplies_the_gradient_steps():
    _, recorder, *_ = trained(config("delayed", updates_per_step=2))
    assert [row["updates"] for row in recorder.rows] == [2 * 60, 2 * 100]


def test_statistics_are_of_every_observation_of_every_environment():
    agent = AGENTS["preqn_norm"](hidden_sizes=(16, 16))
    trainer, *_ = trained(config("delayed", agent=agent, total_steps=100))
    statistics, seen = trainer.population.agent.statistics, trainer.population.replay.transitions.observation[0, :100]
    np.testing.assert_allclose(statistics.mean[0], seen.mean(0), atol=1e-5)
    np.testing.assert_allclose(statistics.deviation[0], np.std(seen, axis=0), rtol=0.05)
    assert statistics.total[0] == 100


def test_targets_of_n_steps_stay_within_their_environment():
    trainer = DeviceTrainer(config("delayed", num_envs=5, n_step=2, start_steps=100, update_after=200))
    trainer.compile()
    for _ in range(10):
        trainer.advance()
    one = trainer._identity._replace(key=trainer.keys)
    draw = lambda one, ring: trainer._functions._draw(one, ring, after=np.uint32(100))  # noqa: E731
    batch = jax.tree.map(np.asarray, jax.vmap(draw)(one, trainer.population.replay))
    first = batch.observation[..., 0] == 1.0
    np.testing.assert_array_equal(batch.reward, np.where(first, 0.5, 1.0))  # gamma times the reward at the end
    np.testing.assert_array_equal(batch.discount, 0.0)


def test_targets_of_n_steps_end_at_a_time_limit_and_bootstrap_there():
    trainer = DeviceTrainer(config("truncated", num_envs=5, n_step=2, start_steps=100, update_after=200))
    trainer.compile()
    for _ in range(9):  # six whole episodes in each environment
        trainer.advance()
    one = trainer._identity._replace(key=trainer.keys)
    draw = lambda one, ring: trainer._functions._draw(one, ring, after=np.uint32(90))  # noqa: E731
    batch = jax.tree.map(np.asarray, jax.vmap(draw)(one, trainer.population.replay))
    last = np.isclose(batch.observation[..., 0], 1 / 3)
    assert last.any()
    np.testing.assert_array_equal(batch.reward, np.where(last, 1.0, 1.5))
    np.testing.assert_array_equal(batch.discount, np.where(last, 1.0, 0.5))


def test_diagnoses_come_at_their_interval_as_on_the_cpu():
    assert diagnosed_steps(DeviceTrainer(config("delayed", diagnose_every=40))) == [80, 120, 160, 200]


def test_a_stop_before_an_evaluation_leaves_it_to_the_run_that_goes_on():
    whole = whole_run(config("delayed"))[1]
    _, first, partial, finished = trained(config("delayed"), stop_at=100)
    assert not finished
    assert not first.rows
    np.testing.assert_equal(trained(config("delayed"), arrays=partial[100])[1].rows, whole.rows)


@pytest.mark.bitwise
def test_a_member_is_bit_for_bit_what_it_is_alone():
    members = [
        Member(3, {"step_size": 0.1, "min_alignment": 0.9}),
        Member(3, {"step_size": 0.03, "gamma": 0.4, "actor_learning_rate": 1e-2}),
        Member(4, {"damping": 1e-3, "max_backtracks": 3, "exploration_noise": 0.3}),
    ]
    together = trained(config("action", total_steps=400), members=members)[1].rows
    for number in (1, 2):
        agent = dataclasses.replace(AGENT, **members[number].hyperparameters)
        alone = trained(config("action", agent=agent, seed=members[number].seed, total_steps=400))[1].rows
        for ours, theirs in zip(together[number :: len(members)], alone, strict=True):
            np.testing.assert_equal(ours, theirs)


WILD = {"critic_learning_rate": 1e30}
TD3 = {"agent": AGENTS["td3"](hidden_sizes=(16, 16))}


@pytest.mark.bitwise
@pytest.mark.parametrize("count", [1, 3])  # devices
def test_a_member_that_diverges_is_stopped_and_reported_and_the_others_go_on_as_without_it(count):
    members, devices = [Member(0), Member(0, WILD), Member(1)], jax.devices()[:count]
    trainer, recorder, saved, finished = trained(config("action", **TD3), members=members, devices=devices)
    assert finished
    assert recorder.rows[1::3] == [None, None]
    calm = [Member(0), Member(0, {"critic_learning_rate": 1e-3}), Member(1)]
    expected = trained(config("action", **TD3), members=calm, devices=devices)[1].rows
    for member in (0, 2):
        np.testing.assert_equal(recorder.rows[member::3], expected[member::3])
    (message,), (event,) = recorder.messages, recorder.events
    assert message.startswith("warning: stopped: seed 0, critic_learning_rate 1e+30: ")
    assert {name: event[name] for name in ("event", "step", "seed", "member")} == {
        "event": "stopped", "step": 50, "seed": 0, "member": 1
    }  # fmt: skip
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.population.agent))
    _, second, resumed, _ = run_compiled(trainer, saved[100])
    np.testing.assert_equal(second.rows, recorder.rows)
    assert not second.events
    assert_same(resumed[200], saved[200])


def test_a_member_that_was_stopped_neither_steps_nor_learns():
    trainer = DeviceTrainer(config("action", **TD3), members=[Member(0), Member(0, WILD)])
    trainer.compile()
    for _ in range(7):
        before = jax.tree.map(np.array, trainer.population._replace(replay=None))
        trainer.advance()
    assert trainer.running.tolist() == [True, False]
    after = trainer.population._replace(replay=None)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[1], old[1]), after, before)
    assert (trainer.population.envs.observation[0] != before.envs.observation[0]).any()
    evaluation, _ = trainer.play(lambda: False)
    assert evaluation.lengths.tolist() == [[1, 1], [0, 0]]


def test_the_run_ends_when_no_member_is_left():
    with pytest.raises(NonFiniteError, match=r"action: .* of seed 3 is not finite before step 50"):
        trained(config("action", **TD3), members=[Member(3, WILD), Member(4, WILD)])


def test_an_environment_that_is_not_finite_from_its_reset_on_stops_its_member():
    with pytest.raises(NonFiniteError, match="an observation or a parameter of seed 0 is not finite before step 10"):
        trained(config("nan_reset"))


@pytest.mark.bitwise
def test_devices_share_the_members_between_them():
    members = [Member(seed, {"step_size": size}) for seed in (0, 1) for size in (0.1, 0.03)]
    one, spread = (trained(config("action"), members=members, devices=jax.devices()[:count])[1:3] for count in (1, 4))
    for ours, theirs in zip(spread[0].rows, one[0].rows, strict=True):
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    resumed = trained(config("action"), arrays=spread[1][100], members=members, devices=jax.devices()[:4])
    for ours, theirs in zip(resumed[1].rows, spread[0].rows, strict=True):
        np.testing.assert_equal(ours, theirs)


def test_members_all_at_once_as_on_an_accelerator_equal_one_after_the_other(monkeypatch):
    members = [Member(0, {"step_size": 0.1, "min_alignment": 0.9}), Member(1, {"step_size": 0.03, "gamma": 0.4})]
    configuration = config("action", diagnose_every=50)
    one_by_one = trained(configuration, members=members)[1].rows
    monkeypatch.setattr("preqn_jax.training.population.over_learners", lambda function, in_turn: jax.vmap(function))
    at_once = trained(configuration, members=members)[1].rows
    for ours, theirs in zip(at_once, one_by_one, strict=True):
        for name in ours:
            # Rounding can decide whether a step is accepted, in a few of the updates whose mean this is; and
            # `linearization` is the relative difference of two changes of Q that are nearly equal.
            atol = {"accepted": 0.03, "linearization": 1e-3}.get(name, 1e-4)
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-2, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 3}, "config.update_every=10 must be a multiple of config.env.num_envs=3; nearest: 9"),
        ({"replay_capacity": 155}, "config.replay_capacity=155 must be a multiple of config.update_every=10; nearest"),
        ({"replay_capacity": 10**13}, "GiB for 1 member"),
        ({"replay_capacity": 10**12, "batch_size": 10**12}, "lower config.batch_size, or use fewer members"),
        ({"time_limit": -1}, "config.env.time_limit=-1 is out of range"),
        ({"solver_iterations": 8}, "config.env.solver_iterations=8 is not supported by backend=brax; allowed: 0"),
    ],
)
def test_what_cannot_be_is_refused_before_compiling(changes, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        DeviceTrainer(config(**changes))


def test_members_that_do_not_divide_over_devices_are_refused():
    with pytest.raises(SettingError, match="3 members cannot be spread evenly over 2 devices; nearest: 4 members"):
        DeviceTrainer(config(num_seeds=3), devices=jax.devices()[:2])


@pytest.fixture
def float64():
    """As with JAX_ENABLE_X64=1."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["preqn", "sac"])  # of a deterministic and of a random policy
def test_agents_train_where_jax_has_float64(name):
    configuration = config("delayed", agent=AGENTS[name](hidden_sizes=(8,)), diagnose_every=100)
    _, recorder, saved, _ = trained(configuration)
    assert [row["step"] for row in recorder.rows] == [100, 200]
    assert np.isfinite(recorder.rows[-1]["first_q"])
    stored = {array.dtype for leaf, array in saved[200].items() if leaf.startswith("replay.transitions.")}
    assert stored == {np.dtype(np.float32)}
