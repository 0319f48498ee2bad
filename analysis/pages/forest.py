"""The forest plot of all comparisons: where each is drawn, and the sentence that says what a claim came to.

Effects of accuracy share one axis, in percent of the parent's accuracy. Those in other units are drawn on the same axis
line, each stretched to its own range, so that only their side of 0 is to be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.evidence.effect import CANNOT_DECIDE, Effect
from analysis.pages.claims import Claim, effect_text

OWN = 0.8  # of the way to the nearer end of the axis: how far an effect with a unit of its own reaches
# Words of units that a narrow column has no room for.
SHORT = {"points": "pts", "bits/byte": "bpb", "correlation": ""}


@dataclass(frozen=True)
class Axis:
    """The common axis, in percent of the parent's accuracy, with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value is drawn, in percent of the width; values beyond an end are drawn at it."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Mark:
    """An effect as drawn: the ends and the middle of its interval, the paper's value and the margin around 0 (None: not
    there), in percent of the width. `shared`: whether it is in percent of the parent."""

    low: float
    value: float
    high: float
    zero: float
    paper: float | None
    margin: tuple[float, float] | None
    shared: bool


def axis_of(claims: Sequence[Claim]) -> Axis:
    """The axis that holds all effects of accuracy, with 0."""
    drawn = [e.percent_of_parent for claim in claims for e in claim.effects if e.percent_of_parent]
    papers = [e.paper_percent for claim in claims for e in claim.effects if e.paper_percent is not None]
    ends = [x for triple in drawn for x in triple if math.isfinite(x)] + papers + [-5.0, 5.0]
    low, high = min(ends), max(ends)
    ticks = [t for t in MaxNLocator(4).tick_values(low, high) if low - 1e-9 <= t <= high + 1e-9]
    edge = 0.03 * (high - low)
    return Axis(low - edge, high + edge, tuple(float(t) for t in ticks))


def mark(effect: Effect, axis: Axis) -> Mark | None:
    """Where an effect is drawn; None without a value."""
    if effect.mean is None:
        return None
    shared = effect.percent_of_parent is not None
    unit = 100 / effect.parent if shared else stretch(effect, axis)
    value, low, high = (unit * x for x in (effect.value, effect.low, effect.high))
    low, high = (value if math.isnan(end) else end for end in (low, high))
    paper = effect.paper_percent if shared else None if effect.paper is None else unit * effect.paper
    margin = None if effect.margin is None else (axis.at(-unit * effect.margin), axis.at(unit * effect.margin))
    drawn = None if paper is None else axis.at(paper)
    return Mark(axis.at(low), axis.at(value), axis.at(high), axis.at(0), drawn, margin, shared)


def stretch(effect: Effect, axis: Axis) -> float:
    """The factor by which an effect in a unit of its own fits the axis on both sides of 0."""
    values = np.array([x for x in (effect.value, effect.low, effect.high, effect.paper or 0.0) if not math.isnan(x)])
    room = [
        OWN * end / reach for end, reach in ((axis.high, values.max()), (axis.low, values.min())) if reach * end > 0
    ]
    return min(room, default=1.0)


def percent_text(effect: Effect) -> str:
    """An effect for the eye: in percent of the parent where it is one of accuracy, else in its own unit."""
    if effect.mean is None:
        return "–"
    if effect.percent_of_parent is None:
        number, _, unit = effect_text(effect).partition(" (")[0].partition(" ")
        return f"{number} {SHORT.get(unit, unit)}".rstrip()
    return signed(effect.percent_of_parent[0])


def paper_text(effect: Effect) -> str:
    """The paper's effect in the same form; as printed where it is no number in percent of the parent."""
    return effect.in_paper if effect.paper_percent is None else signed(effect.paper_percent)


def signed(value: float) -> str:
    """A percentage with its sign."""
    return f"{value:+.1f}%".replace("-", "−")


def outcome(claim: Claim) -> str:
    """What a claim came to, after its headline and verdict: `: +24.3% here, +24.2% in the paper.`"""
    effect = claim.primary
    if effect.mean is None:
        return f": {effect.reason}." if claim.verdict == CANNOT_DECIDE else ": not measured."
    number = effect.paper_percent is not None or effect.paper is not None
    return f": {percent_text(effect)} here" + (f", {paper_text(effect)} in the paper." if number else ".")
