"""Weight drift per layer as panels, a table and effects, shared by the artefacts on drift."""

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
    """All measures per value of `by` and kind of weight, averaged over the layers of a run."""
    inside = drift[drift["kind"].isin(list(KINDS))] if len(drift) else drift
    inside = inside.assign(kind=inside["kind"].map(KINDS))
    per_run = inside.groupby([by, "kind", "run", "seed"], as_index=False, sort=False)[list(MEASURES)].mean()
    return by_point(per_run, MEASURES, (by, "kind")).rename(columns={by: ""})


def log_drift(drift: pd.DataFrame, kind: str) -> pd.Series:
    """Seed → log of the relative change of the weights of a kind, averaged over layers."""
    of_kind = drift[drift["kind"] == kind]
    return np.log(of_kind["relative"].astype(float)).groupby(of_kind["seed"]).mean()


def drift_effect(drift: pd.DataFrame, sweep: str, more: str, less: str, kind: str) -> Effect:
    """The log ratio of the relative weight changes of two points, averaged over layers: above 0 if `more` drifts more
    than `less`."""
    what = f"log of the change, {more} − {less}, {KINDS[kind]}"
    sides = [drift[drift["point"] == point] if len(drift) else drift for point in (more, less)]
    missing = ", ".join(f"{sweep} {p}" for p, side in zip((more, less), sides, strict=True) if side.empty)
    if missing:
        return Effect(what, missing=(missing,))
    first, second = (log_drift(side, kind) for side in sides)
    runs = pd.concat(sides)["run"].tolist()
    return scalar_effect(what, (first - second).dropna(), runs, "{:+.2f}", "further")
