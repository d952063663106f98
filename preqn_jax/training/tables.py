"""Tables as text: CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def to_csv(rows: Iterable[Sequence[Any]], header: Sequence[str] | None = None, digits: int = 6) -> str:
    """Formats rows as CSV.

    Args:
      rows: the rows.
      header: names of the columns; None for no header.
      digits: significant digits of floats; all other values are converted by ``str``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header is not None:
        writer.writerow(header)
    for row in rows:
        writer.writerow([f"{value:.{digits}g}" if isinstance(value, float) else value for value in row])
    return buffer.getvalue()


def to_markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Formats rows as the lines of a Markdown table; values are converted by ``str``."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]
