"""The points and the grid of a sweep's file as named sets of overrides."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analysis.plan.compose import options_matching


@dataclass(frozen=True)
class Variant:
    """A named set of overrides; `values` are its grid values."""

    name: str
    label: str
    overrides: tuple[str, ...]
    values: dict[str, Any]


def variants(points: dict[str, dict], grid: dict[str, Any]) -> Iterator[Variant]:
    """The product of `points` and the axes of `grid`; with either empty, the other alone."""
    named = [Variant(name, p["label"], tuple(p.get("overrides", ())), {}) for name, p in points.items()]
    axes = [axis(key, values) for key, values in grid.items()]
    for combination in itertools.product(*([named] if named else []), *axes):
        yield Variant(
            ", ".join(v.name for v in combination),
            ", ".join(v.label for v in combination),
            tuple(itertools.chain.from_iterable(v.overrides for v in combination)),
            {key: value for v in combination for key, value in v.values.items()},
        )


def axis(key: str, values: list | dict[str, list[str]] | str) -> list[Variant]:
    """One variant per value of a grid key. In a dict, each name stands for its list of overrides; a text is Hydra's
    `glob(...)` of the options of a config group."""
    if isinstance(values, str):
        values = options_matching(key, values)
    if isinstance(values, dict):
        return [Variant(f"{key}={name}", f"{key} {name}", tuple(o), {key: name}) for name, o in values.items()]
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    word = key.rpartition(".")[2].replace("_", " ")
    return [
        Variant(f"{key}={text}", f"{word} {text}", (f"{key}={text}",), {key: value})
        for text, value in zip(texts, values, strict=True)
    ]
