"""Which Gymnasium environments may have been meant by an id that cannot be made."""

from __future__ import annotations

import difflib
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from preqn_jax.envs import interface

_AT_MOST = 4
_SIMILAR = 0.6  # of difflib; below that a name is another one


def suggest(env_id: str, kwargs: Mapping[str, Any], *, versions_alone: bool = False) -> str:
    """The end of a line on an id: what can be made, the same name in another version first, then similar names.

    Args:
      env_id: that cannot be made.
      kwargs: of the constructor.
      versions_alone: no similar names.
    """
    module, colon, name = env_id.rpartition(":")
    alike = (other for other in _alike(name, versions_alone) if _can_be_made(other, kwargs))
    found = [f"{module}{colon}{other}" for other in itertools.islice(alike, _AT_MOST)]
    text = f"; did you mean {found[0]}?" if found else ""
    text += f" (or {', '.join(found[1:])})" if found[1:] else ""
    if colon or versions_alone:
        return text
    return f"{text}; an environment of your own is <module>:<Id>, after the module that registers it"


def _alike(name: str, versions_alone: bool) -> Iterator[str]:
    """Registered ids, the likeliest first."""
    base, _ = _split(name)
    others = [other for other in gymnasium.registry if other != name]
    same = [other for other in others if _split(other)[0] == base]
    yield from sorted(same, key=lambda other: _split(other)[1], reverse=True)
    if not versions_alone:
        likeness = {other: _likeness(base, _split(other)[0]) for other in others if other not in same}
        similar = [other for other in likeness if likeness[other] >= _SIMILAR]
        yield from sorted(similar, key=lambda other: (likeness[other], _split(other)[1]), reverse=True)


def _split(name: str) -> tuple[str, int]:
    """An id without its version, in lower case, and the version; -1 without one."""
    match = re.fullmatch(r"(.*)-v(\d+)", name)
    return (match[1].lower(), int(match[2])) if match else (name.lower(), -1)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _can_be_made(env_id: str, kwargs: Mapping[str, Any]) -> bool:
    """Tries it: a registered environment may need a package that is missing, or have spaces that no agent takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            env = gymnasium.make(env_id, **{"disable_env_checker": True, **kwargs})
            interface.check_spaces(env_id, env)
        except Exception:
            return False
    env.close()
    return True
