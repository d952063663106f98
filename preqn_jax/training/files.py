"""Files that are whole or not there."""

from __future__ import annotations

import os
import pathlib


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
