"""`data=mixed`: several sources, each with a weight."""

from __future__ import annotations

import inspect
from typing import Any

from dlm.data.chat import Conversations
from dlm.data.external import External, Spec
from dlm.data.origin import Origin
from dlm.data.text import Texts

KINDS = {"text": Texts, "chat": Conversations}
ORIGIN = ("path", "name", "split", "revision")


class Mixed(External):
    """`sources` has, by name, the options of each: `kind` (text or chat), `weight` (of its rows; 1 by default), what
    `Origin` takes, and what the kind takes (`Texts`, `Conversations`)."""

    def __init__(self, sources: dict[str, dict[str, Any]], held_out: str = "hash", **kwargs: Any):
        if not sources:
            raise ValueError("data.sources is empty: name a source, as in data.sources={web:{path:web.jsonl}}")
        super().__init__({name: spec(name, source) for name, source in sources.items()}, held_out=held_out, **kwargs)

    def chosen(self, sources):
        """No source fills the ends of the rows of another: the weights are those of the rows."""
        return super().chosen(sources)[0], None


def spec(name: str, source: dict[str, Any]) -> Spec:
    """A source as its options say. Raises `ValueError` for an option that it does not have."""
    option, rest = f"data.sources.{name}", dict(source)
    kind, weight = rest.pop("kind", "text"), rest.pop("weight", 1.0)
    if kind not in KINDS:
        raise ValueError(f"{option}.kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if type(weight) not in (int, float):
        raise ValueError(f"{option}.weight {weight!r} must be a finite number")
    if not rest.get("path"):
        raise ValueError(f"{option}.path is not set: give {option}.path=VALUE")
    own = inspect.signature(KINDS[kind]).parameters
    if unknown := set(rest) - {*ORIGIN, *own}:
        raise ValueError(f"{option} has no option {sorted(unknown)}: choose from {['kind', 'weight', *ORIGIN, *own]}")
    origin = Origin(**{key: rest[key] for key in ORIGIN if key in rest}, option=f"{option}.path")
    return Spec(origin, KINDS[kind](**{key: rest[key] for key in own if key in rest}), float(weight))
