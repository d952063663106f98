"""Tasks on MJX: parity with Gymnasium in float32, resets, and what Brax's wrappers and agents expect."""

import functools
import sys

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.envs.base import Env
from brax.envs.wrappers.training import AutoResetWrapper, EpisodeWrapper, VmapWrapper

from experiments.studies.parity.measurements import collect, relative_error
from preqn_jax.envs import MJX_TASKS, make_mjx
from preqn_jax.envs.mjx import align_friction, mjx
from preqn_jax.settings import SettingError

pytestmark = pytest.mark.slow

BATCH = 60
# Compiled in half the time; these programs run only a few times.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def env_of(env_id):
    return make_mjx(env_id)


@functools.cache
def step_of(env_id):
    return compiled(jax.vmap(env_of(env_id).step))


@functools.cache
def cases_of(env_id):
    return collect(env_id, BATCH)


def begin(env_id, cases):
    before = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), cases.before)
    return jax.vmap(env_of(env_id).begin)(before)


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "InvertedPendulum-v5"])
def test_a_step_is_gymnasiums_in_float32(env_id):
    cases = cases_of(env_id)
    state = step_of(env_id)(begin(env_id, cases), cases.action)
    assert relative_error(state.obs, cases.observation).max() < 1e-3
    assert relative_error(state.reward, cases.reward).max() < 1e-4
    np.testing.assert_array_equal(state.done, cases.terminated.astype(np.float32))
    np.testing.assert_array_equal(state.info["terminated"], cases.terminated)
    assert cases.terminated.any() or cases.contact.any()


@pytest.mark.parametrize(
    "env_id",
    ["Ant-v5", "Hopper-v5", "Humanoid-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Swimmer-v5", "Walker2d-v5"],
)
def test_velocities_keep_to_the_aim_of_parity(env_id):
    cases = cases_of(env_id)
    state = step_of(env_id)(begin(env_id, cases), cases.action)
    error = relative_error(state.pipeline_state.quantities.qvel, cases.after.qvel)
    # Humanoid's few contacts of a steep capsule are off by more (docs/parity.md).
    assert np.quantile(error[~cases.steep] if env_id == "Humanoid-v5" else error, 0.99) < 1e-3
    assert np.mean(state.info["terminated"] == cases.terminated) >= 0.98


def test_friction_axes_are_c_mujocos_where_capsules_stand_steeply():
    env, model = env_of("Ant-v5"), env_of("Ant-v5").mj_model
    data = mujoco.MjData(model)
    found = 0

    @compiled
    def contacts(qpos):
        with jax.numpy_rank_promotion("allow"):  # as MJX needs
            data = mjx.fwd_position(env.model, mjx.make_data(model).replace(qpos=qpos))
            return align_friction(env.model, data)._impl.contact

    for seed in range(20):
        generator = np.random.default_rng(seed)
        data.qpos = model.qpos0
        data.qpos[2] = 0.5
        data.qpos[3:7] = generator.normal(size=4)
        data.qpos[7:] = generator.uniform(-1.0, 1.0, model.nq - 7)
        mujoco.mj_forward(model, data)
        ours = contacts(data.qpos.astype(np.float32))
        for contact in data.contact:
            if list(model.geom_type[contact.geom]) != [mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE]:
                continue
            axis = data.geom_xmat[contact.geom[1]].reshape(3, 3)[:, 2]
            same = (np.array(ours.geom) == contact.geom).all(axis=1)
            nearest = np.argmin(np.where(same, np.linalg.norm(np.array(ours.pos) - contact.pos, axis=1), np.inf))
            np.testing.assert_allclose(ours.frame[nearest], contact.frame.reshape(3, 3), atol=1e-4)
            found += abs(axis[2]) > np.cos(np.pi / 6)
    assert found >= 5


@pytest.mark.parametrize(("env_id", "spread"), [("Hopper-v5", 5e-3), ("HalfCheetah-v5", 0.1)])
def test_resets_are_distributed_as_gymnasiums(env_id, spread):
    original = gymnasium.make(env_id).unwrapped
    quantities = compiled(jax.vmap(env_of(env_id).reset))(keys(4000)).pipeline_state.quantities
    position = np.array(quantities.qpos) - original.init_qpos
    velocity = np.array(quantities.qvel) - original.init_qvel
    assert abs(position).max() <= spread + 1e-6
    np.testing.assert_allclose(position.mean(axis=0), 0.0, atol=0.06 * spread)
    np.testing.assert_allclose(position.std(axis=0), spread / np.sqrt(3), rtol=0.05)
    normal = env_id == "HalfCheetah-v5"
    np.testing.assert_allclose(velocity.std(axis=0), spread if normal else spread / np.sqrt(3), rtol=0.08)
    assert (abs(velocity).max() > 1.1 * spread) == normal
    together = np.concatenate([position, velocity], axis=1)
    assert abs(np.corrcoef(together.T) - np.eye(together.shape[1])).max() < 0.1


def test_reachers_goals_fill_a_disc():
    physics = compiled(jax.vmap(env_of("Reacher-v5").reset))(keys(4000)).pipeline_state
    goals = np.array(physics.quantities.qpos[:, 2:])
    radius = np.linalg.norm(goals, axis=1)
    assert radius.max() < 0.2
    np.testing.assert_allclose((radius < 0.1).mean(), 0.25, atol=0.03)  # a quarter of the area
    np.testing.assert_allclose(goals.mean(axis=0), 0.0, atol=0.01)
    assert not np.array(physics.quantities.qvel[:, 2:]).any()
    assert abs(np.array(physics.quantities.qpos[:, :2])).max() <= 0.1


@pytest.mark.parametrize("env_id", ["Humanoid-v5", "InvertedDoublePendulum-v5", "Reacher-v5"])
def test_a_first_observation_is_what_gymnasium_makes_of_that_state(env_id):
    state = compiled(env_of(env_id).reset)(jax.random.key(3))
    env = gymnasium.make(env_id).unwrapped
    env.reset()
    mujoco.mj_resetData(env.model, env.data)
    env.set_state(*(np.array(array, float) for array in state.pipeline_state.quantities[:2]))
    np.testing.assert_allclose(state.obs, env._get_obs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env_id", MJX_TASKS)
def test_sizes_and_time_limits_are_gymnasiums(env_id):
    env, original = env_of(env_id), gymnasium.make(env_id)
    assert isinstance(env, Env)
    assert (env.observation_size,) == original.observation_space.shape
    assert (env.action_size,) == original.action_space.shape
    assert env.time_limit == original.spec.max_episode_steps
    assert env.dt == original.unwrapped.dt
    assert env.backend == "mjx"
    reset = jax.eval_shape(env.reset, jax.random.key(0))
    assert (reset.obs.shape, reset.reward.shape, reset.done.shape) == ((env.observation_size,), (), ())


def test_a_key_decides_the_start():
    starts = jax.vmap(env_of("InvertedPendulum-v5").reset)(keys(50)).obs
    again = jax.vmap(env_of("InvertedPendulum-v5").reset)(keys(50)).obs
    np.testing.assert_array_equal(starts, again)
    assert len(np.unique(starts, axis=0)) == 50


def test_members_of_a_batch_do_not_mix():
    env_id = "InvertedPendulum-v5"
    state, action, order = begin(env_id, cases_of(env_id)), cases_of(env_id).action, np.arange(BATCH)[::-1]
    straight = step_of(env_id)(state, action)
    turned = step_of(env_id)(jax.tree.map(lambda leaf: leaf[order], state), action[order])
    np.testing.assert_allclose(straight.obs[order], turned.obs, rtol=1e-5, atol=1e-6)


def test_actions_cover_the_controls_and_are_clipped_to_them():
    env_id = "InvertedPendulum-v5"  # controls in [-3, 3]
    state = begin(env_id, jax.tree.map(lambda leaf: np.repeat(leaf[:1], BATCH, axis=0), cases_of(env_id)))
    actions = np.resize([-1.0, -0.5, 0.0, 0.5, 1.0, 7.0], (BATCH, 1)).astype(np.float32)
    speeds = step_of(env_id)(state, actions).obs[:6, 2]
    np.testing.assert_allclose(np.diff(speeds[:5]), np.diff(speeds)[0], rtol=0.01)
    assert speeds[5] == speeds[4] > 0.1


def test_a_time_limit_is_no_termination():
    env_id = "InvertedPendulum-v5"
    cases, limit = cases_of(env_id), env_of(env_id).time_limit
    state = begin(env_id, cases)
    assert not np.array(state.info["truncated"]).any()
    for steps, expected in [(limit - 2, np.zeros(BATCH, bool)), (limit - 1, ~cases.terminated)]:
        after = step_of(env_id)(
            state.replace(info={**state.info, "steps": np.full(BATCH, steps, np.int32)}), cases.action
        )
        np.testing.assert_array_equal(after.info["truncated"], expected)
        np.testing.assert_array_equal(after.info["steps"], steps + 1)
        np.testing.assert_array_equal(after.done, cases.terminated)
    assert 0 < cases.terminated.sum() < BATCH


def test_braxs_training_wrappers_compose():
    plain = env_of("Reacher-v5")
    env = AutoResetWrapper(EpisodeWrapper(VmapWrapper(plain), plain.time_limit, 1))
    assert env.observation_size == plain.observation_size

    @compiled
    def rollout(key):
        def step(state, _):
            state = env.step(state, jnp.full((2, 2), 0.1))
            return state, (
                state.obs,
                state.done,
                state.info["truncation"],
                state.info["truncated"],
                state.info["steps"],
            )

        first = env.reset(jax.random.split(key))  # Brax's wrapper wants keys of the older kind
        return first.pipeline_state.quantities, first.obs, jax.lax.scan(step, first, None, 101)[1]

    physics, start, (observation, done, truncation, truncated, steps) = rollout(jax.random.PRNGKey(0))
    ends = np.isin(np.arange(101), [49, 99])
    for flag in (done, truncation, truncated):
        np.testing.assert_array_equal(flag, np.repeat(ends[:, None], 2, axis=1))
    np.testing.assert_array_equal(steps[:, 0], [*range(1, 51), *range(1, 51), 1])
    np.testing.assert_array_equal(observation[49], start)  # Brax's wrapper starts again from there
    np.testing.assert_allclose(observation[50], observation[0], rtol=1e-5, atol=1e-6)

    original = gymnasium.make("Reacher-v5").unwrapped
    original.reset()
    original.set_state(np.array(physics.qpos[0], float), np.array(physics.qvel[0], float))
    expected = [original.step(np.full(2, 0.1))[0] for _ in range(49)]
    np.testing.assert_allclose(observation[:49, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("env_id", "options", "says"),
    [
        ("Hoper-v5", {}, "did you mean Hopper-v5"),
        ("Pendulum-v1", {}, "MJX task=Pendulum-v1 is unknown"),
        ("Reacher-v5", {"integrator": "rk4"}, "did you mean RK4"),
        ("Swimmer-v5", {"integrator": "implicitfast"}, "MJX cannot run Swimmer-v5"),
        ("Reacher-v5", {"iterations": 0}, "iterations=0 is out of range"),
        ("Reacher-v5", {"ls_iterations": -1}, "ls_iterations=-1 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(env_id, options, says):
    with pytest.raises(SettingError, match=says) as error:
        make_mjx(env_id, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package", ["brax", "mujoco"])
def test_a_missing_package_is_named_with_its_remedy(package, monkeypatch):
    monkeypatch.delitem(sys.modules, "preqn_jax.envs.mjx")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match="pip install mujoco-mjx brax") as error:
        make_mjx("Reacher-v5")
    assert package in str(error.value)
    assert "\n" not in str(error.value)
