"""A hook of MkDocs that links the roles of docstrings, such as :func:`name`, to the entries of the API page."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>~?([\w.]+)</code>")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces each role by its last name, as a link if the page has an entry of that name."""
    entries = {name.rpartition(".")[2]: name for name in re.findall(r'id="(preqn_jax\.[\w.]+)"', html)}

    def linked(role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        return f'<a href="#{entries[name]}">{code}</a>' if name in entries else code

    return ROLE.sub(linked, html)
