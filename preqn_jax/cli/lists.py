"""Lists of names and of seeds on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from preqn_jax import settings
from preqn_jax.settings import SettingError


def check_names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Checks a list of names.

    Raises:
      SettingError: if the list is empty, or contains an unknown name or a duplicate.
    """
    if not given:
        raise SettingError(f"{flag} is empty; allowed: {', '.join(known)}")
    for name in given:
        if name not in known:
            raise SettingError(settings.unknown(flag, name, known))
    if len(set(given)) < len(given):
        raise SettingError(f"{flag}={','.join(given)} contains a name twice")


def choose_seeds(
    texts: Sequence[str] | None, number: int | None, default: Sequence[int], first: int = 0
) -> tuple[int, ...]:
    """Returns the seeds listed by ``--seeds=0,3,5``, or the ``--num-seeds=8`` consecutive seeds from ``first``.

    Args:
      texts: the value of ``--seeds``; None if the flag is not given.
      number: the value of ``--num-seeds``; None if the flag is not given.
      default: the seeds if neither flag is given.
      first: the first seed for ``--num-seeds``.

    Raises:
      SettingError: if both flags are given, or the values of ``--seeds`` are not distinct non-negative integers.
    """
    if texts is not None and number is not None:
        raise SettingError("--seeds and --num-seeds exclude each other; give a list of seeds, or their number")
    if texts is not None:
        return parse_seeds(texts)
    return tuple(default) if number is None else tuple(range(first, first + number))


def parse_seeds(texts: Sequence[str]) -> tuple[int, ...]:
    """Parses the value of ``--seeds=0,1,2``.

    Raises:
      SettingError: if the seeds are not distinct non-negative integers.
    """
    try:
        seeds = tuple(int(text) for text in texts)
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SettingError(f"--seeds={','.join(texts)} must be distinct whole numbers of at least 0, for example 0,1,2")
    return seeds
