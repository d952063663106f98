"""Every Python example of the documentation runs as it stands."""

import inspect
import pathlib
import re

import pytest

import preqn_jax

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    """Their text and line, the rest left blank so that tracebacks name the page's own lines."""
    text = page.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, block.start(1)) + block[1]


EXAMPLES = {f"{page.name}-{i}": (page, code) for page in PAGES for i, code in enumerate(blocks(page))}


def test_there_are_examples():
    assert {"README.md", "composing.md"} <= {page.name for page, _ in EXAMPLES.values()}


@pytest.mark.parametrize(("page", "code"), EXAMPLES.values(), ids=EXAMPLES)
def test_example_runs(page, code):
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", preqn_jax.__all__)
def test_every_public_name_is_on_the_page_of_the_interface(name):
    thing = getattr(preqn_jax, name)
    module = thing.__name__ if inspect.ismodule(thing) else thing.__module__
    assert f"::: {module}\n" in (ROOT / "docs" / "api.md").read_text()
