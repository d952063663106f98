"""Atomic file writes."""

from __future__ import annotations

import os
import pathlib


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a text file atomically: readers see the old or the new content, never a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
