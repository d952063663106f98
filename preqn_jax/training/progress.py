"""Progress on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TextIO, TypeVar

import tqdm

T = TypeVar("T")


class Progress(contextlib.AbstractContextManager["Progress", None]):
    """A progress bar on stderr, or nothing but messages if stderr is not a terminal.

    Errors of a full disk or a closed terminal are ignored.

    Attributes:
      visible: whether there is a bar.
    """

    def __init__(self, total: int, unit: str, initial: int = 0, smoothing: float = 0.3):
        """Shows the bar; see ``tqdm.tqdm`` for the arguments."""
        self.visible = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=total,
            unit=unit,
            initial=initial,
            smoothing=smoothing,
            disable=not self.visible,
            dynamic_ncols=True,
        )

    def describe(self, text: str) -> None:
        """Shows what is in progress, in front of the bar, or as a message."""
        if not self.visible:
            message(text)
        with contextlib.suppress(OSError):
            self._bar.set_description(text)

    def advance(self, amount: int = 1, values: dict[str, Any] | None = None) -> None:
        """Advances the bar and shows ``values`` behind it."""
        with contextlib.suppress(OSError):
            if values is not None:
                self._bar.set_postfix(values, refresh=False)
            self._bar.update(amount)

    def close(self) -> None:
        """Closes the bar and leaves it visible."""
        with contextlib.suppress(OSError):
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def message(text: str, file: TextIO | None = None) -> None:
    """Prints one line to stderr, or to ``file``, above the bar if there is one."""
    with contextlib.suppress(OSError):
        tqdm.tqdm.write(text, file=file or sys.stderr)


def track(items: Sequence[T], describe: Callable[[T], str], unit: str) -> Iterator[T]:
    """Iterates over items and shows the progress: a bar, or one line for each item if stderr is not a terminal."""
    with Progress(len(items), unit) as progress:
        for number, item in enumerate(items, 1):
            text = describe(item)
            progress.describe(text if progress.visible else f"[{number}/{len(items)}] {text}")
            yield item
            progress.advance()


def time_left(seconds: float) -> str:
    """Formats a duration, for example ``1:02:03``."""
    return tqdm.tqdm.format_interval(seconds)
