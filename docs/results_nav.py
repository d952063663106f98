"""A hook of MkDocs that lists the pages of the results in the navigation, in the order and groups of their index."""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig

INDEX = "results/README.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces the index of the results in ``nav`` by a section: the index, then a subsection per heading of it."""
    text = pathlib.Path(config.docs_dir, INDEX).read_text()
    _, *groups = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    section: list[object] = [INDEX]
    for heading, body in zip(groups[::2], groups[1::2], strict=True):
        section.append({heading: [f"results/{path}" for path in re.findall(r"\]\((\w+/README\.md)\)", body)]})
    config.nav = [{title: section if page == INDEX else page} for entry in config.nav for title, page in entry.items()]
    return config
