"""The breakdown of an update by parts and kinds of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import profile
from tests.programs import execute


def program(x, w):
    with jax.named_scope("target"):
        y = jnp.tanh(x @ w)
    with jax.named_scope("gram"):
        gram = y @ y.T
    with jax.named_scope("solve"):
        return jnp.linalg.cholesky(gram + jnp.eye(len(y)))


@pytest.fixture(scope="module")
def operations():
    compiled = jax.jit(program).lower(jnp.ones((8, 4)), jnp.ones((4, 16))).compile()
    return profile.read_operations(compiled.as_text())


def test_the_work_of_products_is_counted_in_the_part_that_they_belong_to(operations):
    outside = [operation for name, operation in operations.items() if "fused" not in name]
    assert max(o.flops for o in outside if o.part == "target") == 2 * 8 * 4 * 16
    assert max(o.flops for o in outside if o.part == "gram") == 2 * 8 * 16 * 8


def test_operations_have_a_kind(operations):
    assert {"activations", profile.PRODUCTS, profile.FACTORIZATIONS} <= {o.kind for o in operations.values()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jit(steps)/while/body/closed_call/actor/jvp(Actor)/MLP_0/cond/branch_0_fun/mul", "activations"),
        ("jit(steps)/while/body/closed_call/cond/branch_1_fun/actor/integer_pow", "other"),  # of a delayed actor
        ("cond/branch_1_fun/actor/jvp(Critic)/MLP_0/LayerNorm_0/reduce_sum", "LayerNorm"),
    ],
)
def test_an_operation_within_a_conditional_keeps_its_kind(name, kind):
    assert profile.Operation(name, 0.0).kind == kind


def test_the_table_adds_up_and_a_single_interruption_does_not_count():
    operations = {
        "dot.1": profile.Operation("jit(f)/target/dot_general", 100.0),
        "tanh.2": profile.Operation("jit(f)/target/tanh", 0.0),
        "add.3": profile.Operation("jit(f)/add", 0.0),
    }
    durations = {"dot.1": [1000.0, 1000.0, 50_000.0], "tanh.2": [500.0] * 3, "add.3": [250.0] * 3}
    lines = profile.table(durations, operations, updates=3)
    assert [line.split()[0] for line in lines[1:]] == ["target", "rest", "all"]
    np.testing.assert_allclose([float(word) for word in lines[1].split()[1:]], [1.0, 0, 0.5, 0, 0, 1.5])
    assert float(lines[-1].split()[-1]) == 1.75


def test_operations_within_control_flow_are_counted_once():
    def branch(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    compiled = jax.jit(branch).lower(jnp.ones((8, 8))).compile()
    assert " conditional(" in compiled.as_text()
    assert not [name for name, o in profile.read_operations(compiled.as_text()).items() if o.flops > 2 * 8**3]
    assert not [name for name in profile.read_operations(compiled.as_text()) if name.startswith("cond")]


def test_the_program_prints_every_part_of_the_update(tmp_path):
    sizes = ["--config.agent.hidden_sizes=8,8", "--config.batch_size=16"]
    code, output, errors = execute("benchmarks.profile", *sizes, "--repeats=1", cwd=tmp_path)
    assert code == 0, errors
    for part in ("target", "linearize", "gram", "solve", "pull_back", "line_search", "actor"):
        assert f"\n{part} " in output
    assert "times as long" in output
