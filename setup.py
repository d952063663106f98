"""The dependencies and extras of the distribution; pyproject.toml has all other metadata."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
RAY = "ray[client]>=2.40,<3"
MINATAR = "MinAtar>=1.0.15,<2"
WANDB = "wandb>=0.19,<1"


def requirements() -> dict[str, list[str]]:
    """Return the lines of requirements.txt, grouped by the heading above them."""
    groups: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if heading := re.fullmatch(r"# \[(\w+)\]", line):
            group = groups.setdefault(heading[1], [])
        elif line and not line.startswith("#"):
            group.append(line)
    return groups


groups = requirements()
library = groups.pop("library")
setuptools.setup(
    install_requires=library,
    extras_require={
        **groups,
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "cluster": [RAY],
        "minatar": [MINATAR],
        "wandb": [WANDB],
        "examples": [*groups["train"], *groups["mjx"], "gymnax>=0.0.9,<0.1", "rejax>=0.1.3,<0.2", "sbx-rl>=0.28,<0.29"],
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26,<2"],
        "dev": [
            MINATAR,
            RAY,
            "hypothesis>=6.100,<7",
            "mypy>=1.11,<3",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "rlax>=0.1.9,<0.2",
            "ruff>=0.12,<1",
            "types-psutil",
            "types-tqdm",
            WANDB,
        ],
    },
)
