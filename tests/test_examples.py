"""PreQN's critic step inside loops that are not ours, shortened.

A host that is not installed is passed over, unless REQUIRE_HOSTS is set, as ``make examples`` does.
"""

import importlib
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import single_file
from preqn_jax import ntk
from tests.helpers import assert_for_some_seed

pytestmark = pytest.mark.slow

# What a policy that has learned something gains on Pendulum over one that has not; far less than what it can gain.
PENDULUM_GAIN = 300


@pytest.fixture
def example(request):
    """The module named, with the promotion of ranks that hosts make use of and our own tests forbid."""
    name, packages = request.param
    for package in packages:
        importlib.import_module(package) if "REQUIRE_HOSTS" in os.environ else pytest.importorskip(package)
    with jax.numpy_rank_promotion("allow"):
        yield importlib.import_module(f"examples.{name}")


def of(name, *packages):
    return pytest.mark.parametrize("example", [(name, packages)], ids=[name], indirect=True)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_kernel(module, params, inputs):
    """Whether ``ntk.dense`` sees all of a host's network."""
    expected = ntk.per_example(ntk.module_q_fn(module))(params, inputs).gram
    np.testing.assert_allclose(ntk.dense(module)(params, inputs).gram, expected, rtol=1e-4, atol=1e-5)


KEPT = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])


def assert_only_the_kept_move(params, stepped, reward, observation):
    """Whether a critic step, (reward, observation) -> parameters, changes them all, by the kept examples alone."""
    new = stepped(reward, observation)
    other = stepped(jnp.where(KEPT, reward, 1e3), jnp.where(KEPT[:, None], observation, 7.0))
    jax.tree.map(np.testing.assert_array_equal, new, other)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True))


def test_the_single_file_learns():
    def check(seed):
        returns = single_file.train("preqn", "Pendulum-v1", steps=1_600, warmup=400, seed=seed)
        assert len(returns) == 8
        assert np.mean(returns[-2:]) > np.mean(returns[:2]) + PENDULUM_GAIN

    assert_for_some_seed(check)


def test_preqn_in_the_single_file_reads_no_target_network():
    size = single_file.BATCH_SIZE  # as in training, which has compiled the update
    observation, action = normal(0, size, 3), normal(1, size, 1)
    online = (
        single_file.Critic().init(jax.random.key(2), observation, action),
        single_file.MLP(1).init(jax.random.key(3), observation),
    )
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), online)
    state = single_file.State(online, broken, tuple(map(single_file.ADAM.init, online)))
    batch = single_file.Batch(observation, action, normal(4, size), jnp.zeros(size), normal(5, size, 3))
    finite = {}
    for name, step in single_file.CRITICS.items():
        leaves = jax.tree.leaves(single_file.update(step, state, batch).online)
        finite[name] = all(np.isfinite(leaf).all() for leaf in leaves)
    assert finite == {"ddpg": False, "preqn": True}


@pytest.mark.parametrize(
    ("example", "host", "arguments"),
    [
        (("single_file", ()), "ddpg", ["--steps=410", "--warmup=400"]),
        (("rejax_td3", ("rejax", "gymnax")), "rejax", ["--steps=500"]),
        (("sbx_ddpg", ("sbx",)), "sbx", ["--steps=200"]),
        (("brax_sac", ("brax",)), "brax", ["--env=fast", "--steps=400"]),
    ],
    indirect=["example"],
    ids=["single_file", "rejax_td3", "sbx_ddpg", "brax_sac"],
)
def test_a_program_trains_host_and_ours_and_prints_both(example, host, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    example.main()
    rows = [line.partition("(")[0].split() for line in capsys.readouterr().out.splitlines()]
    (first, *ours), (second, *theirs) = [row for row in rows if row and row[0] in (host, "preqn")]
    assert {first, second} == {host, "preqn"}
    assert len(ours) == len(theirs) > 0
    assert np.isfinite([float(mean) for mean in (*ours, *theirs)]).all()


@of("rejax_td3", "rejax", "gymnax")
def test_rejax_learns(example):
    def check(seed):
        returns = example.evaluations(example.PreQN, 5_000, seed=seed, num_critics=1)
        assert returns[-1] > returns[0] + PENDULUM_GAIN

    assert_for_some_seed(check)


@of("rejax_td3", "rejax", "gymnax")
def test_what_ended_in_rejax_has_no_part_in_a_step(example):
    algorithm = example.PreQN.create(env="Pendulum-v1", num_critics=1)
    state = algorithm.init_state(jax.random.key(0))
    inputs = normal(1, 6, 3), jnp.tanh(normal(2, 6, 1))
    one = jax.tree.map(lambda leaf: leaf[0], state.critic_ts.params["params"])
    critic, params = example.Critic(algorithm.critic), {"params": {"critic": one}}
    np.testing.assert_array_equal(  # the host's own parameters and values
        critic.apply(params, *inputs, KEPT), KEPT * algorithm.vmap_critic(state.critic_ts.params, *inputs)[0]
    )
    assert_same_kernel(critic, params, (*inputs, KEPT))
    step = jax.jit(algorithm.update_critic)

    def stepped(reward, observation):
        batch = state.replay_buffer.data._replace(
            obs=observation, action=inputs[1], reward=reward, done=KEPT == 0, next_obs=normal(3, 6, 3)
        )
        return step(state, batch).critic_ts.params

    assert_only_the_kept_move(state.critic_ts.params, stepped, normal(4, 6), inputs[0])


@of("sbx_ddpg", "sbx")
def test_sbx_learns(example):
    def check(seed):
        returns = example.evaluations(example.PreQN, 1_500, seed=seed)
        assert returns[-1] > returns[0] + PENDULUM_GAIN

    assert_for_some_seed(check)


@of("sbx_ddpg", "sbx")
def test_the_kernel_of_the_critic_of_sbx(example):
    inputs = normal(0, 5, 3), normal(1, 5, 1)
    assert_same_kernel(example.Critic(), example.Critic().init(jax.random.key(2), *inputs), inputs)


@pytest.mark.skipif("REQUIRE_HOSTS" not in os.environ, reason="takes a minute; make examples runs it")
@of("brax_sac", "brax")
def test_brax_learns(example):
    def check(seed):
        returns = example.train("preqn", "inverted_pendulum", steps=2_000, seed=seed)
        assert len(returns) == example.EVALUATIONS
        assert returns[-1] > returns[0] + 50  # of 200

    assert_for_some_seed(check)


@of("brax_sac", "brax")
def test_what_brax_truncated_has_no_part_in_a_step(example):
    network = example.sac_networks.make_sac_networks(3, 1)
    single = example.networks.make_q_network(3, 1, hidden_layer_sizes=example.HIDDEN_SIZES, n_critics=1)
    params, policy = single.init(jax.random.key(0)), network.policy_network.init(jax.random.key(1))
    inputs = normal(2, 6, 3), jnp.tanh(normal(3, 6, 1))
    np.testing.assert_allclose(  # the host's own parameters and values
        example.Critic().apply(params, *inputs, KEPT), KEPT * single.apply(None, params, *inputs)[:, 0], rtol=1e-6
    )
    assert_same_kernel(example.Critic(), params, (*inputs, KEPT))
    step = jax.jit(example.make_preqn_step(network))

    def stepped(reward, observation):
        extras = {"state_extras": {"truncation": 1.0 - KEPT}}
        batch = example.types.Transition(observation, inputs[1], reward, jnp.ones(6), normal(5, 6, 3), extras)
        return step(params, policy, None, None, 0.1, batch, jax.random.key(6), optimizer_state=None)[1]

    assert_only_the_kept_move(params, stepped, normal(4, 6), inputs[0])
