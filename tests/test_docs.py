"""Every Python example of the documentation runs as it stands, and every link leads to a file and a heading."""

import inspect
import pathlib
import pydoc
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


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), EXAMPLES.values(), ids=EXAMPLES)
def test_example_runs(page, code):
    exec(compile(code, str(page), "exec"), {"__name__": "example"})


API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("name", [*preqn_jax.__all__, "train", "load_policy"])
def test_every_public_name_is_on_the_page_of_the_interface(name):
    thing = getattr(preqn_jax, name)
    if inspect.ismodule(thing):
        assert f"\n::: preqn_jax.{name}." in API
    else:
        assert re.search(rf"^::: (preqn_jax|{re.escape(thing.__module__)})\.{name}$", API, re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"^::: (\S+)$", API, re.MULTILINE))
def test_every_name_on_the_page_of_the_interface_exists(path):
    thing = pydoc.locate(path)
    assert thing is not None
    assert inspect.getdoc(thing)


LINKED = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
RESULTS = ROOT / "docs" / "results"


def prose(page):
    """The page's text without its blocks and spans of code, in which brackets are no links."""
    return re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors of its headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not re.match(r"\w+:", link) and (not target.exists() or (anchor and anchor not in anchors(target))):
            yield link


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not list(broken_links(page))


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#none) [c](missing.csv) [d](https://example.org) `[e](code)`\n")
    assert list(broken_links(page)) == ["#none", "missing.csv"]


def test_the_index_of_the_results_links_to_every_experiment():
    assert {path.name for path in RESULTS.iterdir() if path.is_file()} == {"README.md"}
    linked = re.findall(r"^- \[.+\]\((\w+)/README\.md\)", (RESULTS / "README.md").read_text(), re.MULTILINE)
    assert sorted(linked) == sorted(path.name for path in RESULTS.iterdir() if path.is_dir())
