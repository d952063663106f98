import gymnasium
import numpy as np
import pytest

from preqn_jax.envs import ENVS
from preqn_jax.envs import host as host_env
from preqn_jax.envs.config import EnvConfig
from preqn_jax.envs.host import Episode, HostEnv
from preqn_jax.settings import SettingError
from tests import odd_probes, probes  # noqa: F401  registers the probes


def rollout(env, actions):
    return [env.step(action) for action in actions]


@pytest.mark.parametrize("env_id", [*ENVS.values(), "Ant-v4", "Pendulum-v1"])
def test_steps_are_gymnasiums_own(env_id):
    env, plain = HostEnv(env_id, [3, 0]), gymnasium.make(env_id)
    observation = env.reset()
    assert observation.dtype == np.float32
    assert observation.shape == (env.observation_size,)
    seed = int(np.random.SeedSequence([3, 0, 0]).generate_state(1)[0])
    np.testing.assert_array_equal(observation, plain.reset(seed=seed)[0].astype(np.float32))
    generator = np.random.default_rng(0)
    for _ in range(20):
        action = generator.uniform(-1, 1, env.action_size).astype(np.float32)
        low, high = plain.action_space.low, plain.action_space.high
        expected = plain.step((low + 0.5 * (action + 1.0) * (high - low)).astype(low.dtype))
        step = env.step(action)
        np.testing.assert_array_equal(step.observation, expected[0].astype(np.float32))
        assert (step.reward, step.terminated, step.truncated) == (float(expected[1]), expected[2], expected[3])


def test_actions_cover_the_whole_box():
    low, high = probes.Probe.action_space.low, probes.Probe.action_space.high
    seen = []
    gymnasium.register(
        "ProbeSpy-v0", entry_point=probes.Probe, kwargs={"reward": lambda action, last: seen.append(action) or 0.0}
    )
    env = HostEnv("ProbeSpy-v0", [0])
    for action in (-1.0, 0.0, 1.0):
        env.reset()
        env.step(np.array([action]))
    np.testing.assert_allclose(seen, [low[0], 2.0, high[0]])


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        *((dtype, np.finfo(dtype).min, np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64)),
        *((dtype, np.iinfo(dtype).min, np.iinfo(dtype).max) for dtype in (np.int8, np.int32, np.int64, np.uint64)),
        (np.int64, 0, np.iinfo(np.int64).max),
        (np.float32, -3e38, 3e38),
        (np.float32, 1e38, 3e38),
    ],
)
def test_actions_cover_the_widest_box(dtype, low, high):
    space = gymnasium.spaces.Box(np.array([low, 0], dtype), np.array([high, 2], dtype), (2,), dtype)
    scale = host_env.to_space(space)
    with np.errstate(all="raise"):
        taken = [scale(np.array([share, share], np.float32)) for share in (-1, -0.5, 0, 0.5, 1)]
    assert all(space.contains(action) for action in taken)
    span = int(high) - int(low)  # of Python's integers, which have no bounds
    for action, quarter in zip(taken, range(5), strict=True):
        assert abs(int(action[0]) - (int(low) + span * quarter // 4)) <= max(1, span / 2000)
        assert abs(float(action[1]) - quarter / 2) < 1
    assert taken[0].tolist() == space.low.tolist()
    assert taken[-1].tolist() == space.high.tolist()


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.int64, 0, 1), (np.int32, -2, 2), (np.uint8, 0, 9)])
def test_integers_have_equal_shares_of_the_actions(dtype, low, high):
    scale = host_env.to_space(gymnasium.spaces.Box(low, high, (), dtype))
    taken = np.array([scale(np.array([action], np.float32)) for action in np.linspace(-1, 1, 7001)])
    numbers, counts = np.unique(taken, return_counts=True)
    assert taken.dtype == dtype
    assert numbers.tolist() == list(range(low, high + 1))
    np.testing.assert_allclose(counts, 7001 / len(numbers), atol=2)


def test_discrete_actions_are_one_hot_and_all_are_drawn():
    env = HostEnv("ProbeChoice-v0", [0])
    assert env.discrete
    assert env.action_size == 3
    drawn = [env.random_action(np.random.default_rng(seed)) for seed in range(30)]
    assert {tuple(action) for action in drawn} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    rewards = [rollout(env, [action])[0].reward for action in np.eye(3) if env.reset() is not None]
    assert rewards == [0.0, 1.0, 0.0]  # 6 is the second of 5, 6, 7


def test_a_time_limit_is_no_termination_and_its_observation_is_the_true_successor():
    env = HostEnv("Pendulum-v1", [0])
    env.reset()
    steps = rollout(env, np.zeros((200, 1)))
    assert [step.truncated for step in steps] == [False] * 199 + [True]
    assert not any(step.terminated for step in steps)
    assert not np.array_equal(steps[-1].observation, env.reset())


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "ProbeEndless-v0"])  # with a limit of its own, and without
def test_a_time_limit_can_be_set(env_id):
    env = host_env.make(EnvConfig(env_id, time_limit=3), [0])
    env.reset()
    steps = rollout(env, np.zeros((3, env.action_size)))
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False)] * 2 + [(False, True)]
    assert not env.caveats
    assert bool(host_env.make(EnvConfig(env_id), [0]).caveats) == (env_id == "ProbeEndless-v0")


def test_falling_over_terminates():
    env = HostEnv("InvertedPendulum-v5", [0])
    env.reset()
    while not (step := env.step(np.ones(1))).terminated:
        assert not step.truncated


@pytest.mark.parametrize("env_id", ["Hopper-v5", "ProbeDelayed-v0"])
def test_restore_reaches_the_same_state_bit_for_bit(env_id):
    env, again = HostEnv(env_id, [7]), HostEnv(env_id, [7])
    actions = np.random.default_rng(1).uniform(-0.3, 0.3, (3, env.action_size)).astype(np.float32)
    for _ in range(3):
        env.reset()
    last = rollout(env, actions[:1])[-1]
    observation, total = again.restore(env.episode)
    np.testing.assert_array_equal(observation, last.observation)
    assert total == last.reward
    for ours, theirs in zip(rollout(env, actions[1:2]), rollout(again, actions[1:2]), strict=True):
        np.testing.assert_array_equal(ours.observation, theirs.observation)
    np.testing.assert_array_equal(env.reset(), again.reset())


def test_an_episode_of_minatar_does_not_begin_with_the_last_action_of_the_one_before():
    env, fresh, left = HostEnv("MinAtar/Breakout-v1", [7]), HostEnv("MinAtar/Breakout-v1", [7]), np.eye(3)[1]
    for number in range(50):  # one action in ten repeats the last
        env.reset(number)
        env.step(left)
        first = env.reset(number + 1), env.step(np.eye(3)[0]).observation
        np.testing.assert_array_equal(first, (fresh.reset(number + 1), fresh.step(np.eye(3)[0]).observation))


def test_restore_at_the_start_of_an_episode():
    env = HostEnv("Hopper-v5", [7])
    np.testing.assert_array_equal(env.restore(Episode(4, np.zeros((0, 3), np.float32)))[0], env.reset(4))


def test_episodes_and_seeds_differ():
    env, other_seed, other_stream = (HostEnv("Hopper-v5", entropy) for entropy in ([0, 0], [1, 0], [0, 1]))
    starts = [env.reset(), env.reset(), other_seed.reset(), other_stream.reset()]
    assert len({start.tobytes() for start in starts}) == 4


def test_a_constructor_need_not_know_a_render_mode():
    assert HostEnv("Odd-v0", [0]).reset().tolist() == [3, 3, 3]


def test_the_constructor_and_every_reset_are_given_what_the_configuration_says():
    assert host_env.make(EnvConfig("NeedsArgument-v0", kwargs={"size": 7}), [0]).reset().tolist() == [7, 7, 7]
    env = host_env.make(EnvConfig("NeedsOptions-v0", reset_options={"goal": 2}), [0])
    assert [env.reset().tolist() for _ in range(2)] == [[2, 2, 2]] * 2
    assert env.restore(Episode(4, np.zeros((1, 1))))[0].tolist() == [2, 2, 2]


def test_an_argument_that_is_missing_or_unknown_is_named_with_the_flag_that_gives_one():
    for env_id, kwargs, name in (("NeedsArgument-v0", {}, "'size'"), ("Odd-v0", {"sise": 1}, "'sise'")):
        with pytest.raises(SettingError, match=rf"{env_id}.*{name}.*--config\.env\.kwargs\.<name>") as error:
            HostEnv(env_id, [0], kwargs=kwargs)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("Aunt-v5", r"did you mean Ant-v5\? \(or Ant-v4\)"),
        ("Walker2d-v9", r"did you mean Walker2d-v5\? \(or Walker2d-v4\); .*<module>:<Id>"),
        ("Pendulum-v0", r"did you mean Pendulum-v1\? \(or .*InvertedPendulum-v5"),  # the name before what is similar
        ("Ant-v2", r"cannot be created.*did you mean Ant-v5\? \(or Ant-v4\)$"),
        ("hopper", r"did you mean Hopper-v5\?"),
        ("Versioned-v1", r"did you mean Versioned-v10\? \(or Versioned-v2\)"),  # v9 and v8 cannot be made
        ("Versioned-v9", r"cannot be created.*did you mean Versioned-v10\? \(or Versioned-v2\)$"),
        ("tests.odd_probes:Versioned-v1", r"did you mean tests\.odd_probes:Versioned-v10\? \(or tests"),
        ("tests.odd_probes:Verzioned-v2", r"did you mean tests\.odd_probes:Versioned-v10\?"),
        ("nonsense", "is unknown; your own environment is <module>:<Id>"),
        ("ProbeUnfit-v0", "bounded Box or Discrete action space"),
        ("no_such_module:Env-v0", "no_such_module"),
        ("NoSuchPackage/Game-v0", "no installed package provides NoSuchPackage/"),
        ("MinAtar/Brakeout-v1", "did you mean MinAtar/Breakout-v1"),
    ],
)
def test_an_environment_that_cannot_be_is_refused_in_one_line(env_id, says):
    with pytest.raises(SettingError, match=says) as error:
        HostEnv(env_id, [0])
    assert env_id in str(error.value)
    assert "\n" not in str(error.value)


BOX, CHOICE = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(3)
PAIR = gymnasium.spaces.Dict({"a": BOX, "b": gymnasium.spaces.Tuple([CHOICE, BOX])})
THREE = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "says"),
    [
        ("NoSpaces-v0", {}, "needs an observation_space from gymnasium.spaces, but has None"),
        ("Sees-v0", {"space": gymnasium.spaces.Sequence(BOX), "value": ()}, "without a fixed length: Sequence"),
        ("Sees-v0", {"space": gymnasium.spaces.Graph(BOX, None), "value": ()}, "without a fixed length: Graph"),
        (
            "Sees-v0",
            {"space": gymnasium.spaces.Dict({"a": gymnasium.spaces.Sequence(BOX)}), "value": ()},
            "without a fixed",
        ),
        ("Sees-v0", {"space": gymnasium.spaces.Box(-1, 1, (0,)), "value": ()}, r"empty observation space.*\(0,\)"),
        ("Sees-v0", {"space": gymnasium.spaces.Dict({}), "value": {}}, "empty observation space"),
        ("Acts-v0", {"space": gymnasium.spaces.Box(-1, 1, (0,))}, r"empty action space.*\(0,\)"),
        ("Acts-v0", {"space": gymnasium.spaces.Box(0, np.inf, (1,))}, "needs a bounded Box"),
    ],
)
def test_spaces_that_no_agent_can_use_are_refused_when_the_environment_is_made(env_id, kwargs, says):
    with pytest.raises(SettingError, match=rf"^config\.env\.id={env_id}.*{says}") as error:
        HostEnv(env_id, [0], kwargs=kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "value", "says"),
    [
        (BOX, np.zeros(4), r"an observation of shape \(4,\).*; its space is Box of shape \(3,\)"),
        (BOX, np.zeros((3, 1)), r"shape \(3, 1\)"),
        (BOX, None, "an observation None; its space is Box"),
        (BOX, [0.0, [1.0], 2.0], "its space is Box"),
        (BOX, {"a": THREE}, "of type dict with the keys 'a'; its space is Box"),
        (BOX, np.array(["a", "b", "c"]), "type <U1"),
        (CHOICE, 3, r"an observation 3; its space is Discrete\(3\)"),
        (CHOICE, -1, "an observation -1"),
        (CHOICE, 1.5, "an observation 1.5"),
        (gymnasium.spaces.MultiDiscrete([2, 3]), np.array([2, 0]), r"\[2, 0\]; its space is MultiDiscrete"),
        (PAIR, {"a": THREE}, "with the keys 'a'; its space is"),
        (PAIR, THREE, r"an observation of shape \(3,\)"),
        # As many entries as there should be, but elsewhere.
        (PAIR, {"a": np.zeros(4), "b": (0, np.zeros(2))}, r"with 'a': of shape \(4,\)"),
        (PAIR, {"a": THREE, "b": (0,)}, r"with 'b': \(0,\); its space is Tuple"),
        (PAIR, {"a": THREE, "b": (5, THREE)}, r"with 0: 5; its space is Discrete\(3\)"),
    ],
)
def test_an_observation_that_is_not_of_its_space_is_named_with_both(space, value, says):
    env = HostEnv("Sees-v0", [0], kwargs={"space": space, "value": value})
    with pytest.raises(SettingError, match=rf"^config\.env\.id=Sees-v0: reset\(\) returned .*{says}") as error:
        env.reset()
    assert "\n" not in str(error.value)


def test_observations_in_parts_become_one_vector():
    env = HostEnv("Sees-v0", [0], kwargs={"space": PAIR, "value": {"a": THREE + 1, "b": (2, [4.0, 5.0, 6.0])}})
    assert env.observation_size == 9
    assert env.reset().tolist() == [1, 1, 1, 0, 0, 1, 4, 5, 6]


FIVE = "requires 5: observation, reward, terminated, truncated, info"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (("o", 1.0, False, {}), f"4 values; .*{FIVE}"),
        ("o", f"one value of type ndarray; .*{FIVE}"),
        (None, "one value of type NoneType"),
        (
            ("o", np.ones(1), False, False, {}),
            r"reward=of shape \(1,\) and type float64: \[1.0\]; .* requires a number",
        ),
        (("o", None, False, False, {}), "reward=None; .* requires a number"),
        (("o", "1.0", False, False, {}), "reward='1.0'; .* requires a number"),
        (("o", 1.0, None, False, {}), "terminated=None; .* requires a bool"),
        (("o", 1.0, False, {}, {}), "truncated=of type dict .*; .* requires a bool"),
        (("o", 1.0, np.array([True]), False, {}), r"terminated=of shape \(1,\)"),
        ((np.zeros(2), 1.0, False, False, {}), r"an observation of shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("env_id", ["Gives-v0", "GivesLimited-v0"])  # without and with a wrapper that unpacks
def test_a_step_that_returns_something_else_is_named_with_what_it_returned(env_id, step, says):
    env = HostEnv(env_id, [0], kwargs={"step": step})
    env.reset()
    with pytest.raises(SettingError, match=rf"^config\.env\.id={env_id}: step\(\) returned .*{says}") as error:
        env.step(np.zeros(1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reset", ["o", ("o", {}, {}), None])
def test_a_reset_that_returns_something_else_is_named_with_what_it_returned(reset):
    with pytest.raises(SettingError, match=r"reset\(\) returned .*; .* requires 2: observation, info"):
        HostEnv("Gives-v0", [0], kwargs={"reset": reset}).reset()


@pytest.mark.parametrize("number", [np.float64(2), np.array(2), np.int32(2), True + True])
def test_numbers_and_flags_of_any_kind_are_taken(number):
    env = HostEnv("Gives-v0", [0], kwargs={"step": ("o", number, np.bool_(True), np.array(False), None)})
    env.reset()
    assert env.step(np.zeros(1))[1:] == (2.0, True, False)


def test_what_an_environment_raises_is_told_in_one_line_with_its_place():
    env = HostEnv("Raises-v0", [0])
    env.reset()
    with pytest.raises(SettingError, match=r"step\(\) raised RuntimeError in odd_probes\.py:\d+: the robot is \("):
        env.step(np.zeros(1))
    with pytest.raises(SettingError, match=r"'seed'.*Gymnasium's reset\(\*, seed=None, options=None\)"):
        HostEnv("ResetWithoutSeed-v0", [0]).reset()
    with pytest.raises(SettingError, match=r"AttributeError in odd_probes\.py.*--config\.env\.reset_options\.<name>"):
        HostEnv("NeedsOptions-v0", [0]).reset()


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3))])
def test_a_picture_that_is_none_is_refused(picture):
    env = HostEnv("Draws-v0", [0], "rgb_array", {"picture": picture})
    env.reset()
    with pytest.raises(SettingError, match=r"^config\.env\.id=Draws-v0: render\(\) returned an array of shape \(4, 4"):
        env.render()
