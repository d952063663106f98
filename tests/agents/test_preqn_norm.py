"""The agent of two critics on halves of a minibatch, against Algorithm 1 and against its parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from preqn_jax.agents import preqn_norm
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.agents.preqn import PreQNConfig
from preqn_jax.agents.preqn_norm import PreQNNormConfig
from preqn_jax.networks import Critic
from preqn_jax.ops import ntk, solvers
from preqn_jax.ops.preqn import preqn_update
from tests.agents.batches import A, B, O, batch

pytestmark = pytest.mark.slow

SMALL = PreQNNormConfig(hidden_sizes=(16, 16), normalize_observations=False)
# As in the paper's agent.
OFF = {"num_critics": 1, "split_minibatch": False, "critic_layer_norm": "none", "policy_delay": 1}
CRITIC = Critic((16, 16), "relu", layer_norm="fixed")


@functools.cache
def make(**changes):
    return dataclasses.replace(SMALL, **changes).make(O, A)


papers_update = jax.jit(functools.partial(preqn_update, ntk.module_q_fn(CRITIC), solver=solvers.ridge(1e-4)))


def after(agent, updates=1, data=None):
    """State and scalars after some updates."""
    state, update = agent.init(jax.random.key(1)), jax.jit(agent.update)
    for i in range(updates):
        state, info = update(state, batch(i) if data is None else data, jax.random.key(10 + i))
    return state, info


@pytest.mark.bitwise
@pytest.mark.parametrize(
    ("activation", "more"), [("sin", {"split_minibatch": True}), ("relu", {"target_pessimism": 0.0})]
)
def test_with_every_option_off_it_is_the_papers_agent_bit_for_bit(activation, more):
    shared = {"hidden_sizes": (16, 16), "activation": activation, "normalize_observations": False}
    ours, info = after(PreQNNormConfig(**shared, **{**OFF, **more}).make(O, A)[0], updates=3)
    papers, papers_info = after(PreQNConfig(**shared).make(O, A)[0], updates=3)
    jax.tree.map(np.testing.assert_array_equal, ours.critics, (papers.critic,))
    jax.tree.map(np.testing.assert_array_equal, ours.actor.params, papers.actor)
    jax.tree.map(np.testing.assert_array_equal, info, papers_info)


@pytest.mark.parametrize(("split", "pessimism"), [(True, 1.0), (True, 0.4), (False, 0.0)])
def test_each_critic_takes_preqns_step_on_its_rows_towards_one_target(split, pessimism):
    (agent, _), data = make(split_minibatch=split, target_pessimism=pessimism), batch()
    state = agent.init(jax.random.key(1))
    new, _ = jax.jit(agent.update)(state, data, jax.random.key(2))
    action = agent.act(state, data.next_observation)
    one, two = (CRITIC.apply(params, data.next_observation, action) for params in state.critics)
    target = data.reward + 0.99 * data.discount * ((one + two) / 2 - pessimism * abs(one - two) / 2)
    rows = [slice(0, B // 2), slice(B // 2, B)] if split else [slice(0, B)] * 2
    for before, got, own in zip(state.critics, new.critics, rows, strict=True):
        inputs = data.observation[own], data.action[own]
        expected, info = papers_update(before, inputs, target[own])
        assert info.accepted
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), got, expected)


def test_critics_start_apart():
    critics = make()[0].init(jax.random.key(0)).critics
    assert not np.array_equal(*(jax.tree.leaves(params)[1] for params in critics))


def test_the_actor_climbs_the_first_critic_just_improved():
    (agent, _), data = make(), batch()
    state = agent.init(jax.random.key(1))
    new, info = jax.jit(agent.update)(state, data, jax.random.key(2))

    def loss(params):
        action = agent.act(state._replace(actor=state.actor._replace(params=params)), data.observation)
        return -CRITIC.apply(new.critics[0], data.observation, action).mean()

    adam = optax.adam(1e-3)
    updates, _ = adam.update(jax.grad(loss)(state.actor.params), adam.init(state.actor.params))
    expected = optax.apply_updates(state.actor.params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.actor.params, expected)
    np.testing.assert_allclose(info["actor_loss"], loss(state.actor.params), rtol=1e-4)


def test_a_delayed_actor_moves_at_every_third_update_alone():
    agent, _ = make(policy_delay=3)
    state, moved = agent.init(jax.random.key(1)), []
    for i in range(7):
        new, info = jax.jit(agent.update)(state, batch(i), jax.random.key(i))
        moved.append(not np.array_equal(jax.tree.leaves(new.actor.params)[1], jax.tree.leaves(state.actor.params)[1]))
        assert np.isfinite(info["actor_loss"])
        state = new
    assert moved == [True, False, False, True, False, False, True]


def test_target_noise_changes_targets_within_its_bound():
    data, (agent, plain), (_, noisy) = batch(), make(), make(target_noise=0.5, target_noise_bound=1e-4)
    state = agent.init(jax.random.key(1))
    one, two = (critic.td_error(state, data, jax.random.key(3)) for critic in (plain, noisy))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_adam_in_the_kernels_place_is_adam():
    (agent, critic), data = make(critic_update="adam", critic_learning_rate=3e-3), batch()
    state = agent.init(jax.random.key(1))
    new, _ = jax.jit(agent.update)(state, data, jax.random.key(2))
    target = critic.td_error(state, data, jax.random.key(2)) + CRITIC.apply(
        state.critics[0], data.observation, data.action
    )
    for k, own in enumerate((slice(0, B // 2), slice(B // 2, B))):

        def loss(params, own=own):
            return jnp.mean((CRITIC.apply(params, data.observation[own], data.action[own]) - target[own]) ** 2)

        adam = optax.adam(3e-3)
        updates, _ = adam.update(jax.grad(loss)(state.critics[k]), adam.init(state.critics[k]))
        expected = optax.apply_updates(state.critics[k], updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), new.critics[k], expected)


def test_the_diagonal_in_the_kernels_place_corrects_each_row_by_itself():
    (agent, critic), data = make(critic_update="diagonal", step_size=0.7), batch()
    state = agent.init(jax.random.key(1))
    new, _ = jax.jit(agent.update)(state, data, jax.random.key(2))
    td_error = critic.td_error(state, data, jax.random.key(2))[: B // 2]
    before, steps = state.critics[0], []
    for i in range(B // 2):
        gradient = jax.grad(lambda params, i=i: CRITIC.apply(params, data.observation[i], data.action[i]))(before)
        square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
        steps.append(jax.tree.map(lambda leaf, i=i, square=square: 0.7 * td_error[i] / square * leaf, gradient))
    expected = jax.tree.map(lambda leaf, *each: leaf + sum(each) / len(each), before, *steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.critics[0], expected)


def test_the_diagnosis_knows_the_step_by_the_diagonal():
    (agent, critic), data = make(critic_update="diagonal", step_size=0.01), batch()
    diagnosis = jax.jit(diagnosis_of(agent, critic))(agent.init(jax.random.key(0)), data, jax.random.key(1))
    np.testing.assert_allclose(diagnosis["overshooting"], 0.01 / (B // 2), rtol=1e-3)
    assert diagnosis["linearization"] < 0.2


def test_the_alignment_is_measured_on_the_rows_of_the_first_critic():
    data = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch(0), batch(1))
    _, info = after(with_alignment(*make()), data=data)
    assert info["update_alignment"] > 0.97
    assert info["heldout_alignment"] < 0.97


def test_held_out_rows_are_as_many_as_the_first_critic_was_trained_on():
    agent, critic = make(critic_update="diagonal")
    data, other = (jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch(0), batch(seed)) for seed in (1, 2))
    half = B + B // 2  # the rows from here on are beyond those that count
    mixed = jax.tree.map(lambda one, two: jnp.concatenate([one[:half], two[half:]]), data, other)
    found = [after(with_alignment(agent, critic), data=rows)[1]["heldout_alignment"] for rows in (data, mixed)]
    assert found[0] == found[1]


def test_a_step_is_accepted_if_every_critic_accepts():
    reported = [{"accepted": jnp.asarray(accepted), "q": jnp.asarray(q)} for accepted, q in ((True, 1.0), (False, 3.0))]
    combined = preqn_norm._combined(reported)
    assert not combined["accepted"]
    assert combined["q"] == 2.0
    assert preqn_norm._combined(reported[:1]) == reported[0]


def test_a_minibatch_that_cannot_be_split_evenly_is_refused():
    agent, _ = make(num_critics=5)
    with pytest.raises(ValueError, match="a minibatch of 24 rows cannot be split evenly over 5 critics"):
        after(agent)


def test_the_diagnosis_is_of_the_first_critics_step():
    agent, critic = make()
    diagnosis = jax.jit(diagnosis_of(agent, critic))(agent.init(jax.random.key(0)), batch(), jax.random.key(1))
    _, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), batch(), jax.random.key(1))
    assert diagnosis["overshooting"] == pytest.approx(float(info["step_size"]), rel=0.05)


def test_the_new_agent_is_what_its_page_says():
    config = PreQNNormConfig()
    assert (config.activation, config.critic_layer_norm, config.num_critics) == ("relu", "fixed", 2)
    assert (config.split_minibatch, config.target_pessimism, config.critic_update) == (True, 1.0, "preqn")
    assert (config.policy_delay, config.normalize_observations, config.observation_tail) == (2, True, 2.0)
    assert isinstance(config, PreQNConfig)
