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
        raise SettingError(f"{flag}={','.join(given)} names something twice")


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
        raise SettingError(f"--seeds={','.join(texts)} must be different whole numbers from 0 on, 0,1,2 for example")
    return seeds
