"""Files about the distribution agree with each other."""

import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
import types

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import preqn_jax

ROOT = pathlib.Path(__file__).parent.parent


def given_to_setuptools():
    """Return the arguments of setup.py's one call; setuptools itself need not be installed."""
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=lambda **given: arguments.update(given)))
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


ARGUMENTS = given_to_setuptools()
GROUPS = {"library": ARGUMENTS["install_requires"], **ARGUMENTS["extras_require"]}
REQUIREMENTS = sorted({line for group in GROUPS.values() for line in group})
PINS = {
    canonicalize_name(name): version
    for name, version in (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
}


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CITATION.cff", r"^version: (\S+)$"),
        ("CHANGELOG.md", r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$"),
        ("README.md", r"^  version = \{(\S+)\},$"),
    ],
)
def test_names_the_version_of_the_package(file, pattern):
    first = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert first
    assert first[1] == preqn_jax.__version__


def test_the_changelog_begins_with_what_is_unreleased():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [tuple(map(int, heading.split("."))) for heading in headings[1:]]
    assert versions == sorted(set(versions), reverse=True)


def test_every_line_of_requirements_is_installed():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} <= set(REQUIREMENTS)
    assert {"library", "train", "plot", "video", "mjx", "dev", "docs"} <= set(GROUPS)


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_build_gives_the_reason_for_the_dependency(line):
    _, _, section = (ROOT / "BUILD.md").read_text().partition("## Why each dependency is here")
    rows = re.findall(r"^\| (.+?) \| .+ \|$", section.partition("\n## ")[0], re.MULTILINE)
    named = {canonicalize_name(name) for row in rows for name in re.findall(r"[A-Za-z][\w-]+", row)}
    assert canonicalize_name(Requirement(line).name) in named


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_the_pinned_version_is_in_the_range(line):
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_the_makefile_asks_for_the_required_python():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    major, minor = re.search(r"version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text()).groups()
    assert required == f">={major}.{minor}"


UPDATE_ALONE = """
import inspect, pydoc, sys

sys.modules.update(dict.fromkeys(("gymnasium", "mujoco", "orbax")))  # None, as if they were not installed
import preqn_jax

inspect.getmembers(preqn_jax)
pydoc.render_doc(preqn_jax)
try:
    preqn_jax.train
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_the_packages_for_training_the_module_can_be_inspected_and_names_what_is_missing():
    output = subprocess.run([sys.executable, "-c", UPDATE_ALONE], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"preqn_jax\.train needs the module [\w.]+; run: pip install 'preqn_jax\[train\]'\n", output)
