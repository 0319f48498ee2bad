"""Weight drift per layer: panels, a table and effects, for every artefact that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point, scalar_effect
from analysis.evidence.stats import Effect
from analysis.pages.plots import lines

KINDS = {"attention": "attention", "ffn": "FFN"}
MEASURES = {"relative": "‖ΔW‖ / ‖W‖", "mean_abs": "mean |ΔW|", "one_minus_cos": "1 − cos"}


def drift_panels(drift: pd.DataFrame, by: str, order: Sequence[Any] | None = None) -> tuple[Figure, ...]:
    """One panel for attention and one for FFN: relative change over the layers, one line per value of `by`."""
    inside = drift[drift["layer"] >= 0] if len(drift) else drift
    return tuple(
        lines(inside[inside["kind"] == kind], "layer", "relative", by, name, "layer", MEASURES["relative"], order=order)
        for kind, name in KINDS.items()
    )


def drift_table(drift: pd.DataFrame, by: str) -> pd.DataFrame:
    """All measures, averaged over the layers of a run, per value of `by` and kind."""
    inside = drift[drift["kind"].isin(list(KINDS))] if len(drift) else drift
    inside = inside.assign(kind=inside["kind"].map(KINDS))
    per_run = inside.groupby([by, "kind", "run", "seed"], as_index=False, sort=False)[list(MEASURES)].mean()
    return by_point(per_run, MEASURES, (by, "kind")).rename(columns={by: ""})


def per_seed(drift: pd.DataFrame, kind: str) -> pd.Series:
    """The logarithm of the relative change of every seed, averaged over its layers."""
    chosen = drift[drift["kind"] == kind]
    return np.log(chosen["relative"].astype(float)).groupby(chosen["seed"]).mean()


def drift_effect(drift: pd.DataFrame, sweep: str, more: str, less: str, kind: str) -> Effect:
    """By how much `more` moves the weights further than `less`: the difference of the logarithms (averaged over the
    layers), so above 0 where the claim holds."""
    what = f"log of the change, {more} − {less}, {KINDS[kind]}"
    sides = [drift[drift["point"] == point] if len(drift) else drift for point in (more, less)]
    lacking = ", ".join(f"{sweep} {p}" for p, side in zip((more, less), sides, strict=True) if side.empty)
    if lacking:
        return Effect(what, missing=(lacking,))
    first, second = (per_seed(side, kind) for side in sides)
    runs = pd.concat(sides)["run"].tolist()
    return scalar_effect(what, (first - second).dropna(), runs, "{:+.2f}", "further")
