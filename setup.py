"""Installs the library, ``preqn_jax``; the programs in experiments/ and examples/ run from a checkout."""

import ast
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
RAY = "ray[client]>=2.40,<3"
MINATAR = "MinAtar>=1.0.15,<2"


def requirements() -> dict[str, list[str]]:
    """requirements.txt by the headings in it."""
    groups: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if heading := re.fullmatch(r"# \[(\w+)\]", line):
            group = groups.setdefault(heading[1], [])
        elif line and not line.startswith("#"):
            group.append(line)
    return groups


def version() -> str:
    """``__version__`` of the package, without importing it."""
    text = (ROOT / "preqn_jax" / "__init__.py").read_text()
    (value,) = re.findall(r"^__version__ = (.+)$", text, re.MULTILINE)
    return ast.literal_eval(value)


groups = requirements()
library = groups.pop("library")
setuptools.setup(
    name="preqn_jax",
    version=version(),
    description="PreQN in JAX: Q-learning preconditioned by its own neural tangent kernel",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["preqn_jax", "preqn_jax.*"]),
    package_data={"preqn_jax": ["py.typed"]},
    install_requires=library,
    extras_require={
        **groups,
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "cluster": [RAY],
        "minatar": [MINATAR],
        "examples": [*groups["mjx"], "gymnax>=0.0.9,<0.1", "rejax>=0.1.3,<0.2", "sbx-rl>=0.28,<0.29"],
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
        ],
    },
)
