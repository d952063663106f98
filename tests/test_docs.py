"""Every Python example of the documentation runs as it stands."""

import pathlib
import re

import pytest

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
