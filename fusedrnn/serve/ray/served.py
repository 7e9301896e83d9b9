"""What a process of a cluster serves. In: the name of a shipped model, or a function that makes one; out: its face, made there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine import Engine
from ..http.faces import Face, face
from ..model import Model

Served = str | Callable[[], Model | Engine | Face]
SHIPPED = ("g2p", "chars")


def checked(served: Served) -> Served:
    """What is to be served, if it can be.

    Raises:
        ValueError: there is no shipped model of that name.
        TypeError: it is neither a name nor a function.
    """
    if isinstance(served, str):
        if served not in SHIPPED:
            raise ValueError(f"there is no shipped model {served!r}: take {' or '.join(SHIPPED)}, or give a function that makes a model")
    elif not callable(served):
        raise TypeError(
            f"served must be the name of a model or a function that makes one, got a {type(served).__name__}: each process makes its own"
        )
    return served


def made(served: Served, *, session_key: bytes | None = None, **engine: Any) -> Face:
    """A face of what is served; ``engine``: arguments of `Engine`, where a name or a function gives a model only."""
    it = _shipped(served) if isinstance(served, str) else served()
    if isinstance(it, Model):
        it = Engine(it, **engine)
    return face(it, key=session_key) if isinstance(it, Engine) else it


def _shipped(name: str) -> Model:
    if name == "g2p":
        from ...models import G2P
        from ..g2p import G2PModel

        return G2PModel(G2P.pretrained())
    from ...models import Characters
    from ..characters import CharactersModel

    return CharactersModel(Characters.pretrained())
