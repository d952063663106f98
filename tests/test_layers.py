"""Imports point one way: from the programs over training to the numerics, never back."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Each may import itself and what stands after it.
LAYERS = [
    "tests",
    "experiments",
    "benchmarks",
    "examples",
    "preqn_jax.cli",
    "preqn_jax.training",
    "preqn_jax.envs",
    "preqn_jax.agents",
    "preqn_jax.networks",
    "preqn_jax.theory",
    "preqn_jax.optim",
    "preqn_jax.ops",
    "preqn_jax.types",
    "preqn_jax.settings",
]
FREE = {"preqn_jax"}  # the public names


def layer(module):
    return next((name for name in LAYERS if module == name or module.startswith(name + ".")), None)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


NAMES = ("preqn_jax", "experiments", "benchmarks", "examples")
FILES = [path for name in NAMES for path in (ROOT / name).rglob("*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(path):
    own = layer(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    others = {layer(name) for name in imported(path)} - {None, own}
    upwards = [name for name in others if own is not None and LAYERS.index(name) < LAYERS.index(own)]
    assert not upwards


def test_every_module_belongs_to_a_layer():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    assert {module for module in modules if layer(module) is None} == FREE
