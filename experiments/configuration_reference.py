"""Prints all configuration fields: ``python -m experiments.configuration_reference > docs/configuration.md``."""

from __future__ import annotations

from collections.abc import Iterable

from preqn_jax import settings
from preqn_jax.agents import AGENTS
from preqn_jax.cli import command_line
from preqn_jax.envs import DISCRETE_ENVS, ENVS
from preqn_jax.training import presets
from preqn_jax.training.tables import to_markdown

_HEAD = """# Configuration

A configuration is `<agent>_<environment>`; every field is a flag: `--config.agent.min_alignment=0.9`. This page is what
`python -m experiments.configuration_reference` prints, and a test checks that it is up to date.
"""


def main() -> int:
    """Prints the page; returns the exit code."""
    print(markdown(), end="")
    return 0


def markdown() -> str:
    """The page in Markdown."""
    fields = settings.leaves(presets.get_config(presets.DEFAULT))
    run = [leaf for leaf in fields if not leaf.path.startswith("agent.")]
    sections = [_HEAD, _names(), "## A run\n", _table(run)]
    for name, config in AGENTS.items():
        sections += [f"## {name}\n", _table(settings.leaves(config(), "agent."))]
    return "\n".join(sections)


def _names() -> str:
    rows = []
    for discrete, envs in ((False, ENVS), (True, DISCRETE_ENVS)):
        agents = [name for name, config in AGENTS.items() if config.discrete == discrete]
        rows.append([_code(agents), ", ".join(f"`{name}` ({env_id})" for name, env_id in envs.items())])
    tuned = [name for name in presets.names() if name.startswith("preqn_tuned_")]
    short = f"{_code(presets.SCHEDULES)} have a shorter schedule: {_code(presets.SHORT)}."
    tuned_names = f"Configurations with values that performed better than the paper's: {_code(tuned)}."
    return "\n".join([*to_markdown(("agents", "environments"), rows), "", short, "", tuned_names, ""])


def _table(leaves: Iterable[settings.Leaf]) -> str:
    rows = []
    for leaf in leaves:
        rule = leaf.rule
        allowed = _code(rule.choices) if rule.choices is not None else (rule.interval or "").replace("inf", "∞")
        names = f"`config.{leaf.path}`", f"`{settings.spell(leaf.value)}`"
        rows.append([*names, rule.help.replace("<", "&lt;"), allowed])
    return "\n".join([*to_markdown(("field", "default", "meaning [unit]", "allowed"), rows), ""])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    command_line.run(main)
