"""What holds for every agent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preqn_jax.agents import AGENTS
from preqn_jax.agents.critic_diagnostics import diagnosis_of, with_alignment
from preqn_jax.ops import ntk
from preqn_jax.ops.activations import ACTIVATIONS
from preqn_jax.ops.diagnostics import row_ratio
from tests import helpers, oracles
from tests.agents.batches import A, B, O, batch, make
from tests.ops.jaxprs import dot_precisions


@pytest.fixture(params=AGENTS)
def agent_name(request):
    return request.param


@pytest.fixture
def agent(agent_name):
    return make(agent_name)[0]


@pytest.fixture
def critic(agent_name):
    return make(agent_name)[1]


@pytest.fixture
def draw(agent_name):
    """Minibatches with actions of the agent's kind."""
    return functools.partial(batch, discrete=AGENTS[agent_name].discrete)


assert_close = functools.partial(helpers.assert_close, rtol=1e-4, atol=3e-5)


def test_every_configuration_has_a_name_of_its_own():
    assert all("name" in vars(config) for config in AGENTS.values())


@pytest.mark.slow
def test_jit_changes_nothing(agent, draw):
    state, data, key = agent.init(jax.random.key(0)), draw(), jax.random.key(1)
    with jax.disable_jit():
        expected = agent.update(state, data, key)
    assert_close(expected, jax.jit(agent.update)(state, data, key))


@pytest.mark.slow
def test_vmap_is_a_loop(agent, draw):
    keys = jax.random.split(jax.random.key(0), 3)
    states, data = jax.vmap(agent.init)(keys), jax.tree.map(lambda *x: jnp.stack(x), *map(draw, range(3)))
    together, update = jax.jit(jax.vmap(agent.update))(states, data, keys), jax.jit(agent.update)
    for i in range(3):
        alone = update(*jax.tree.map(lambda x, i=i: x[i], (states, data, keys)))
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


def test_a_second_call_compiles_nothing(agent, draw):
    state = agent.init(jax.random.key(0))
    new, _ = jax.jit(agent.update)(state, draw(), jax.random.key(1))
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


def test_other_seeds_give_other_parameters(agent):
    one, two = (jax.tree.leaves(agent.init(jax.random.key(seed))) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_update_reports_is_always_the_same_and_finite(agent, draw):
    state, names, update = agent.init(jax.random.key(0)), set(), jax.jit(agent.update)
    for i in range(3):
        state, info = update(state, draw(i), jax.random.key(i))
        names.add(tuple(sorted(info)))
        assert all(value.shape == () and np.isfinite(value) for value in info.values())
    assert len(names) == 1
    assert {"q", "td_error"} <= info.keys()


def test_actions_are_of_their_kind_and_exploration_is_random(agent_name, agent):
    state, observation = agent.init(jax.random.key(0)), 10.0 * jax.random.normal(jax.random.key(1), (500, O))
    action, noisy = agent.act(state, observation), agent.explore(state, observation, jax.random.key(2))
    assert action.shape == noisy.shape == (500, A)
    if AGENTS[agent_name].discrete:
        for one_hot in (action, noisy):
            np.testing.assert_array_equal(np.sort(one_hot, axis=-1)[:, -2:], [[0.0, 1.0]] * 500)
    assert np.abs(action).max() <= 1
    assert np.abs(noisy).max() <= 1
    assert not np.array_equal(noisy, agent.explore(state, observation, jax.random.key(3)))


@pytest.mark.parametrize("name", [name for name in AGENTS if hasattr(AGENTS[name], "exploration_noise")])
def test_a_deterministic_policy_explores_by_a_tenth_around_its_action(name):
    agent, _ = make(name)
    state, observation = agent.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (500, O))
    action, noisy = agent.act(state, observation), agent.explore(state, observation, jax.random.key(2))
    inside = np.abs(action) < 0.5  # where the noise is not clipped
    np.testing.assert_allclose(np.std((noisy - action)[inside]), 0.1, rtol=0.2)


@pytest.mark.slow
def test_every_activation_can_be_had(agent_name, draw):
    inputs = (draw().observation, draw().action)
    agents = [make(agent_name, activation=activation) for activation in ACTIVATIONS]
    values = [critic.value(agent.init(jax.random.key(0)), *inputs) for agent, critic in agents]
    assert len({np.asarray(value).tobytes() for value in values}) == len(ACTIVATIONS)


@pytest.mark.slow
def test_every_network_can_have_layer_norm(agent_name, draw):
    kind = "learned" if agent_name in ("preqn", "sac") else "fixed"  # one of each, as every case is compiled
    names = [name for name in ("critic_layer_norm", "actor_layer_norm") if hasattr(AGENTS[agent_name], name)]
    agent, critic = make(agent_name, **dict.fromkeys(names, kind))
    plain, plain_critic = make(agent_name, **dict.fromkeys(names, "none"))
    state, data, key = agent.init(jax.random.key(0)), draw(), jax.random.key(1)
    new, info = jax.jit(agent.update)(state, data, key)
    assert all(np.isfinite(value) for value in info.values())
    unlike = lambda a, b: not np.allclose(a, b, atol=1e-3)  # noqa: E731
    inputs, before = (data.observation, data.action), plain.init(jax.random.key(0))
    assert unlike(critic.value(state, *inputs), plain_critic.value(before, *inputs))
    if "actor_layer_norm" in names:
        assert unlike(agent.act(state, data.observation), plain.act(before, data.observation))
    learned = [
        path for path, _ in jax.tree_util.tree_leaves_with_path(critic.params(state)) if "LayerNorm" in str(path)
    ]
    assert len(learned) == (4 if kind == "learned" else 0)
    assert unlike(critic.value(new, *inputs), critic.value(state, *inputs))


def with_equal_critics(critic, state, first=None):
    """Where there are two critics, what is reported as the mean over both is then that of the first."""
    if hasattr(state, "agent"):  # around it are statistics of observations
        return state._replace(agent=with_equal_critics(critic, state.agent, critic.params(state)))
    first = critic.params(state) if first is None else first
    return state._replace(critics=(first,) * 2) if hasattr(state, "critics") else state


def test_td_errors_are_those_that_the_update_takes(agent, critic, draw):
    state, data, key = with_equal_critics(critic, agent.init(jax.random.key(0))), draw(), jax.random.key(1)
    td_error = jax.jit(critic.td_error)(state, data, key)
    assert td_error.shape == data.reward.shape
    _, info = jax.jit(agent.update)(state, data, key)
    parts = np.split(np.asarray(td_error), B // critic.rows(B))  # one a critic, where they share the minibatch
    np.testing.assert_allclose(np.mean([np.sqrt(np.mean(part**2)) for part in parts]), info["td_error"], rtol=1e-5)
    value = critic.value(state, data.observation, data.action)
    np.testing.assert_allclose(value.mean(), info["q"], rtol=1e-5)


@pytest.mark.slow
def test_measuring_the_alignment_changes_nothing_else(agent, critic, draw):
    state, data, other, key = agent.init(jax.random.key(0)), draw(0), draw(1), jax.random.key(1)
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), data, other)
    plain, measured = (
        jax.jit(agent.update)(state, data, key),
        jax.jit(with_alignment(agent, critic).update)(state, both, key),
    )
    found = [measured[1].pop(name) for name in ("update_alignment", "heldout_alignment")]
    assert_close(measured, plain)
    rows = critic.rows(B)
    for alignment, part in zip(found, (data, other), strict=True):
        before, after = (critic.value(s, part.observation, part.action) for s in (state, plain[0]))
        change = after - before
        expected = oracles.cosine(change[:rows], critic.td_error(state, part, key)[:rows])
        np.testing.assert_allclose(alignment, expected, atol=1e-4)


@pytest.mark.slow
def test_preqn_measures_what_its_linesearch_accepted():
    agent = with_alignment(*make("preqn"))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), batch(0), batch(1))
    _, info = jax.jit(agent.update)(agent.init(jax.random.key(0)), both, jax.random.key(1))
    assert info["accepted"]
    np.testing.assert_allclose(info["update_alignment"], info["alignment"], atol=1e-5)


@pytest.mark.slow
def test_a_diagnosis_tells_preqn_from_gradient_descent(agent_name, agent, critic, draw):
    state, data, key = agent.init(jax.random.key(0)), draw(), jax.random.key(1)
    diagnosis = jax.jit(diagnosis_of(agent, critic))(state, data, key)
    assert all(value.shape == () and np.isfinite(value) for value in diagnosis.values())
    rows = critic.rows(B)
    gram = ntk.per_example(critic.q_fn)(critic.params(state), (data.observation[:rows], data.action[:rows])).gram
    np.testing.assert_allclose(diagnosis["row_ratio"], np.mean(row_ratio(gram)), rtol=1e-4)
    assert 0 < diagnosis["linearization"] < 1
    preconditioned = agent_name.startswith("preqn")
    assert 0 <= diagnosis["extrapolation"] <= 1
    if preconditioned:  # its K is nearly the identity: an entry steps by alpha towards its own target
        step_size = jax.jit(agent.update)(state, data, key)[1]["step_size"]
        assert diagnosis["overshooting"] == pytest.approx(float(step_size), rel=0.05)
    else:  # 2 alpha K_ii / B
        assert diagnosis["overshooting"] == pytest.approx(2e-3 * np.diagonal(gram).max() / rows, rel=1e-4)
    # Eq. 17 for a gradient step, in which the step size cancels; nearly the identity, K leaves little of it.
    magnitudes = np.abs(np.asarray(gram, np.float64))
    diagonal = np.diagonal(magnitudes)
    spill = (magnitudes.sum(axis=1) - diagonal) / diagonal
    of_gradient_descent = (1 + critic.gamma) / (1 - critic.gamma) * spill.max()
    if preconditioned:
        assert diagnosis["over_generalization"] < 0.1 * of_gradient_descent
    else:
        assert diagnosis["over_generalization"] == pytest.approx(of_gradient_descent, rel=1e-3)


@pytest.mark.parametrize("name", ["preqn_norm", "td3"])
def test_diagnostics_add_no_matrix_product_of_reduced_precision(name):
    agent, critic = make(name)
    state, key = agent.init(jax.random.key(0)), jax.random.key(1)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), batch(), batch(1))
    reduced = lambda function, data: dot_precisions(function, state, data, key).count(None)  # noqa: E731
    of_update = reduced(agent.update, batch())
    assert of_update > 0  # so that the next two lines can fail
    assert reduced(with_alignment(agent, critic).update, both) == of_update
    assert reduced(diagnosis_of(agent, critic), batch()) == of_update
