"""The tasks' own part, apart from the physics: Gymnasium's numbers from C MuJoCo's data, to rounding of float64."""

import gymnasium
import numpy as np
import pytest

from preqn_jax.envs.mjx_tasks import TASKS, PhysicsStep, Quantities


def quantities(env_id, data):
    return Quantities(**{name: np.array(getattr(data, name)) for name in ("qpos", "qvel", *TASKS[env_id].reads)})


def trajectory(env_id, steps):
    """(before, control, after, what Gymnasium says) of random actions, from a new reset wherever the task ends."""
    env, generator = gymnasium.make(env_id), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    data = env.unwrapped.data
    np.testing.assert_allclose(TASKS[env_id].observe(quantities(env_id, data)), observation, rtol=0, atol=1e-12)
    for _ in range(steps):
        before = quantities(env_id, data)
        control = generator.uniform(env.action_space.low, env.action_space.high)  # float64, for Gymnasium sums its cost
        outcome = env.step(control)
        yield PhysicsStep(before, quantities(env_id, data), control, env.unwrapped.dt), outcome
        if outcome[2] or outcome[3]:
            env.reset()


@pytest.mark.parametrize("env_id", TASKS)
def test_observation_reward_and_termination_are_gymnasiums_own(env_id):
    task, endings = TASKS[env_id], 0
    for step, (observation, reward, terminated, _, _) in trajectory(env_id, 300):
        np.testing.assert_allclose(task.observe(step.after), observation, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(task.reward(step), reward, rtol=1e-12, atol=1e-12)
        assert bool(task.healthy(step.after)) is not terminated
        endings += terminated
    assert endings > 0 or env_id in ("HalfCheetah-v5", "Reacher-v5", "Swimmer-v5", "Ant-v5")
