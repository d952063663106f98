"""Suggests Gymnasium environments for an id that is unknown or cannot be created."""

from __future__ import annotations

import difflib
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from preqn_jax.envs import interface

_AT_MOST = 4  # number of suggestions
_SIMILAR = 0.6  # minimum similarity of a suggested name, a ratio of difflib


def suggest(env_id: str, kwargs: Mapping[str, Any], *, versions_alone: bool = False) -> str:
    """The end of an error message, with suggestions: other versions of the environment first, then similar names.

    Args:
      env_id: the id that cannot be created.
      kwargs: arguments of the constructor.
      versions_alone: whether to suggest other versions only.
    """
    module, colon, name = env_id.rpartition(":")
    alike = (other for other in _alike(name, versions_alone) if _can_be_made(other, kwargs))
    found = [f"{module}{colon}{other}" for other in itertools.islice(alike, _AT_MOST)]
    text = f"; did you mean {found[0]}?" if found else ""
    text += f" (or {', '.join(found[1:])})" if found[1:] else ""
    if colon or versions_alone:
        return text
    return f"{text}; your own environment is <module>:<Id>, where <module> registers it"


def _alike(name: str, versions_alone: bool) -> Iterator[str]:
    """Registered ids, most similar first."""
    base, _ = _split(name)
    others = [other for other in gymnasium.registry if other != name]
    same = [other for other in others if _split(other)[0] == base]
    yield from sorted(same, key=lambda other: _split(other)[1], reverse=True)
    if not versions_alone:
        likeness = {other: _likeness(base, _split(other)[0]) for other in others if other not in same}
        similar = [other for other in likeness if likeness[other] >= _SIMILAR]
        yield from sorted(similar, key=lambda other: (likeness[other], _split(other)[1]), reverse=True)


def _split(name: str) -> tuple[str, int]:
    """An id in lower case without its version, and the version; -1 if there is none."""
    match = re.fullmatch(r"(.*)-v(\d+)", name)
    return (match[1].lower(), int(match[2])) if match else (name.lower(), -1)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _can_be_made(env_id: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether an environment can be created; a package may be missing, or its spaces may not be supported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            env = gymnasium.make(env_id, **{"disable_env_checker": True, **kwargs})
            interface.check_spaces(env_id, env)
        except Exception:
            return False
    env.close()
    return True
